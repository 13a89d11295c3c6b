"""What do the clients of a storm do? Each makes requests of all kinds, and notes what comes of them."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import h2.exceptions
import httpx

from tests.e2e.noted import Ask, Request, follow, over_http1, over_http2, session
from tests.e2e.witnessed import Note, Wish
from tests.support.gateway import Gateway, Tenant, until
from tests.support.h2_client import Http2Stream, http2_post

CHAT, INFER, EMBEDDINGS = "/v1/chat/completions", "/v1/infer", "/v1/embeddings"
_MESSAGES = [{"role": "user", "content": "Explain gravity to me"}]
_SAID: dict[str, dict[str, Any]] = {
    CHAT: {"messages": _MESSAGES},
    "/v1/completions": {"prompt": "Explain gravity to me"},
    "/v1/responses": {"input": "Explain gravity to me"},
    "/v1/messages": {"messages": _MESSAGES},
    INFER: {"input": "Explain gravity to me"},
    EMBEDDINGS: {"input": "Explain gravity to me"},
}
_BREAKS_BEFORE = ("reset-before-headers", "close-before-headers")
_BREAKS_OFF = ("reset-mid-stream", "close-mid-stream")
_RETRIES = 3
_HTTP2_SHARE = 0.35
_RUNNING = "admitted,dispatched,streaming"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A tenant of the storm, and what its clients want: each wish with its weight."""

    tenant: Tenant
    wishes: Mapping[Wish, int]
    bound: tuple[str, str] | None = None
    most: int = 1000
    """The output tokens that a request may name."""


class StormClient:
    """One client of a party, over HTTP/2 or HTTP/1.1, with a connection of its own.

    `operator` is another client of the same tenant. What is noted is added to `notes`.
    """

    def __init__(
        self, gateway: Gateway, party: Party, operator: aiohttp.ClientSession, notes: list[Note], dice: random.Random
    ) -> None:
        self._gateway = gateway
        self._party = party
        self._operator = operator
        self._notes = notes
        self._dice = dice
        self._http2 = dice.random() < _HTTP2_SHARE
        self._acts: dict[Wish, Callable[[Ask, Note], Any]] = {
            Wish.DONE: self._done,
            Wish.LEFT: self._left,
            Wish.CANCELLED: self._cancelled,
            Wish.SAID_NO: self._said_no,
            Wish.BROKEN_BEFORE: self._broken_before,
            Wish.BROKEN_IN_MIDST: self._broken_in_midst,
            Wish.LATE: self._late,
            Wish.TOO_MUCH: self._too_much,
            Wish.RETRIED: self._retried,
            Wish.REFUSED: self._refused,
        }

    async def rage(self, name: str, rounds: int) -> None:
        """Make so many requests, one after another; `name` begins the names of their models."""
        wishes, weights = list(self._party.wishes), list(self._party.wishes.values())
        async with self._asking() as ask:
            for number in range(rounds):
                [wish] = self._dice.choices(wishes, weights)
                note = Note(wish=wish, model=f"{name}-{number}", bound=self._party.bound)
                self._notes.append(note)
                await self._acts[wish](ask, note)

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[Ask]:
        if self._http2:
            async with self._gateway.client(self._party.tenant, http2=True) as client:
                yield partial(over_http2, client)
        else:
            async with session(self._gateway, self._party.tenant) as client:
                yield partial(over_http1, client)

    async def _done(self, ask: Ask, note: Note) -> None:
        await follow(ask, note, self._request(note, events=self._dice.randrange(16)))

    async def _said_no(self, ask: Ask, note: Note) -> None:
        status = self._dice.choice((400, 404, 408, 429, 500, 503))
        await follow(ask, note, self._request(note, status=status))

    async def _broken_before(self, ask: Ask, note: Note) -> None:
        await follow(ask, note, self._request(note, fault=self._dice.choice(_BREAKS_BEFORE)))

    async def _broken_in_midst(self, ask: Ask, note: Note) -> None:
        fault = self._dice.choice(_BREAKS_OFF)
        await follow(ask, note, self._request(note, fault=fault, events=self._dice.randrange(2, 16)))

    async def _late(self, ask: Ask, note: Note) -> None:
        fault = self._dice.choice(("hang", "stall-mid-stream", "endless"))
        await follow(ask, note, self._request(note, fault=fault, stream=fault == "endless" or None, interval=20))

    async def _too_much(self, ask: Ask, note: Note) -> None:
        await follow(ask, note, self._request(note, fault="endless", stream=True, interval=20))

    async def _refused(self, ask: Ask, note: Note) -> None:
        request = self._request(note, path=self._dice.choice((CHAT, INFER)))
        request.body.update(self._dice.choice(({"model": ""}, {"stream": "yes"}, {"max_tokens": -1})))
        await follow(ask, note, request)

    async def _retried(self, ask: Ask, note: Note) -> None:
        """The same request several times at once: with one key, it is made once."""
        key = {"idempotency-key": note.model}
        first = self._request(note, events=self._dice.randrange(16), headers=key)
        others = [Note(wish=note.wish, model=note.model, bound=note.bound) for _ in range(_RETRIES - 1)]
        self._notes += others
        await asyncio.gather(*(follow(ask, each, first) for each in (note, *others)))

    async def _left(self, ask: Ask, note: Note) -> None:
        if self._dice.random() < 0.4:
            request = self._request(
                note, **self._dice.choice(({"fault": "hang"}, {"delay": self._dice.randrange(400)}))
            )
            leave = self._reset_before if self._http2 else self._close_before
            await leave(note, request, self._dice.uniform(0, 0.4))
            return
        slow = {"events": 200, "interval": self._dice.randrange(20, 50)}
        stalled = {"events": 40, "fault": "stall-mid-stream"}
        request = self._request(note, stream=True, **self._dice.choice((slow, slow, stalled)))
        after = self._dice.randrange(20)
        await (self._reset_at(note, request, after) if self._http2 else follow(ask, note, request, leave_after=after))

    async def _cancelled(self, ask: Ask, note: Note) -> None:
        slow = {"events": 100, "interval": self._dice.randrange(20, 50), "stream": True}
        stalled = {"fault": "stall-mid-stream", "stream": True}
        kind = self._dice.choice((slow, slow, stalled, {"fault": "hang"}, {"delay": 500}))
        running = asyncio.create_task(follow(ask, note, self._request(note, **kind)))
        await asyncio.sleep(self._dice.uniform(0, 0.5))
        listed = None if "stream" in kind else self._operator
        request_id = await until(lambda: _its_id(listed, note, running), seconds=120)

        async def answered() -> bool:
            async with self._operator.post(f"/v1/requests/{request_id}/cancel") as answer:
                note.cancel = answer.status
                if note.cancel == httpx.codes.CONFLICT:
                    details = (await answer.json())["error"]["details"]
                    note.told = (details["state"], details["cause"])
            return note.cancel != httpx.codes.SERVICE_UNAVAILABLE

        await until(answered, seconds=120)
        async with asyncio.timeout(120):
            await running

    async def _close_before(self, note: Note, request: Request, after: float) -> None:
        content = json.dumps(request.body)
        head = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(content))}
        fields = {**head, **self._party.tenant.headers, **request.headers}
        lines = [f"POST {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", content]
        _, writer = await asyncio.open_connection("127.0.0.1", self._gateway.port, ssl=self._gateway.tls)
        writer.write("\r\n".join(lines).encode())
        await asyncio.sleep(after)
        note.left = True
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _reset_before(self, note: Note, request: Request, after: float) -> None:
        async with self._http2_post(request) as stream:
            await asyncio.sleep(after)
            await _reset(note, stream)

    async def _reset_at(self, note: Note, request: Request, after: int) -> None:
        async with self._http2_post(request) as stream:
            await stream.read_headers()
            note.status, note.request_id = int(stream.headers[":status"]), stream.headers["x-request-id"]
            if note.status == httpx.codes.OK:
                await stream.read_events(after)
                await _reset(note, stream)

    def _http2_post(self, request: Request) -> AbstractAsyncContextManager[Http2Stream]:
        return http2_post(self._gateway, self._party.tenant, request.path, request.body, **request.headers)

    def _streamed_path(self) -> str:
        return self._dice.choice([path for path in _SAID if path != EMBEDDINGS])

    def _request(
        self,
        note: Note,
        *,
        path: str = "",
        stream: bool | None = None,
        headers: Mapping[str, str] | None = None,
        **steering: Any,
    ) -> Request:
        """A request of any dialect, as a stream or not, steered as it is told, else at random."""
        path = path or (self._streamed_path() if stream else self._dice.choice(list(_SAID)))
        body: dict[str, Any] = {"model": note.model, **_SAID[path]}
        if path != EMBEDDINGS:
            body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = self._party.most
            body["stream"] = self._dice.random() < 0.6 if stream is None else stream
        told = {"interval": self._dice.randrange(10), "delay": self._dice.randrange(50), **steering}
        names = {"interval": "interval-ms", "delay": "delay-ms"}
        steered = {f"x-demo-{names.get(name, name)}": str(value) for name, value in told.items()}
        return Request(path=path, body=body, headers=steered | dict(headers or {}))


async def _reset(note: Note, stream: Http2Stream) -> None:
    note.left = True
    with contextlib.suppress(h2.exceptions.StreamClosedError):  # its end has come, and was not read yet
        await stream.reset()


async def _its_id(operator: aiohttp.ClientSession | None, note: Note, running: "asyncio.Task[None]") -> str:
    """The id of a request: from its answer, or where the operator lists what runs."""
    if note.request_id or running.done() or operator is None:
        return note.request_id or ("none" if running.done() else "")
    async with operator.get("/v1/requests", params={"state": _RUNNING, "model": note.model}) as answer:
        found = (await answer.json())["data"] if answer.ok else []
    return str(found[0]["id"]) if found else ""
