"""Which request gets which answer? The Router's HTTP surface, on aiohttp's low-level server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from demo import message
from demo.ask import Ask, Dialect, Malformed, read_ask
from demo.dialect import error_body
from demo.metronome import Metronome
from demo.play import Scene, break_off, forgiven, nothing, perform, say
from demo.script import BEFORE_HEADERS, BadHeader, Fault, Script, read_script
from demo.witness import End, Sighting, Witness

DEFAULT_INTERVAL_MS = 30.0
BACKLOG = 1024
GOODBYE_SECONDS = 0.1
STATUS_CANCELLED = 499

_DIALECTS = {
    "/v1/chat/completions": Dialect.CHAT,
    "/v1/completions": Dialect.COMPLETIONS,
    "/v1/responses": Dialect.RESPONSES,
    "/v1/embeddings": Dialect.EMBEDDINGS,
    "/v1/infer": Dialect.INFER,
    "/v1/messages": Dialect.MESSAGES,
}
_SEEN = "/demo/seen/"
_INFER = "/v1/infer/"
_MODELS = {
    "object": "list",
    "data": [
        {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "demo"}
        for name in ("demo-small", "demo-large")
    ],
}


class Router:
    """Serves one request at a time per connection; the witness alone outlives a request."""

    def __init__(self, witness: Witness, metronome: Metronome, interval_ms: float) -> None:
        self._witness = witness
        self._metronome = metronome
        self._interval_ms = interval_ms

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request and make sure that its end is recorded, whichever it is."""
        path = request.raw_path.partition("?")[0]
        if (aside := self._aside(request.method, path)) is not None:
            return aside
        witness, request_id = self._witness, request.headers.get("x-request-id")
        sighting = witness.begin(request_id, request.method, request.raw_path, request.raw_headers)
        try:
            body = await request.read()
            witness.took_body(request_id, sighting, body)
            return await self._answer(request, sighting, path, body)
        except asyncio.CancelledError:
            if not forgiven(sighting):
                raise
            return await self._cancelled(request)
        except (ConnectionError, RequestPayloadError):
            return nothing()
        finally:
            witness.ended(sighting, End.CLIENT_CLOSED)

    def _aside(self, method: str, path: str) -> web.StreamResponse | None:
        # What is asked of the stand-in itself is no model request: it must leave no trace in the totals.
        witness = self._witness
        if method == "DELETE" and path.startswith(_INFER):
            found = witness.cancel(unquote(path.removeprefix(_INFER)))
            return _json(202, {"status": "cancelled"}) if found else _missing("no such running request")
        if method != "GET":
            return None
        if path.startswith(_SEEN):
            seen = witness.seen(unquote(path.removeprefix(_SEEN)))
            return _missing("no such request was seen") if seen is None else _json(200, seen)
        if path == "/demo/totals":
            return _json(200, witness.totals())
        return _json(200, {"status": "ok"}) if path == "/healthz" else None

    async def _answer(self, request: web.BaseRequest, sighting: Sighting, path: str, body: bytes) -> web.StreamResponse:
        script = read_script(request.headers.items())
        if isinstance(script, BadHeader):
            wrong = Malformed(f"the header {script.name} must be {script.wants}", script.name)
            return await self._refuse(request, sighting, 400, wrong)
        if (dialect := _DIALECTS.get(path)) is None or request.method != "POST":
            return await self._elsewhere(request, sighting, path)
        ask = read_ask(dialect, body)
        if isinstance(ask, Malformed):
            return await self._refuse(request, sighting, 400, ask)
        if script.fault is Fault.ENDLESS and not ask.stream:
            wrong = Malformed("the header x-demo-fault: endless needs a stream", "x-demo-fault")
            return await self._refuse(request, sighting, 400, wrong)
        return await self._play(request, sighting, script, ask)

    async def _play(self, request: web.BaseRequest, sighting: Sighting, script: Script, ask: Ask) -> web.StreamResponse:
        if script.delay_ms:
            await asyncio.sleep(script.delay_ms / 1000)
        if script.fault in BEFORE_HEADERS:
            return await break_off(request, self._witness, sighting, script.fault)
        if script.status is not None:
            wrong = Malformed(f"the request asked for status {script.status}")
            return await self._refuse(request, sighting, script.status, wrong)
        numbers = script.usage.numbers
        sighting.tokens_in = numbers[0] if numbers and any(numbers) else ask.prompt_tokens
        interval = self._interval_ms if script.interval_ms is None else script.interval_ms
        scene = Scene(
            request=request,
            witness=self._witness,
            sighting=sighting,
            script=script,
            ask=ask,
            metronome=self._metronome,
            pause=interval / 1000,
        )
        return await perform(scene)

    async def _elsewhere(self, request: web.BaseRequest, sighting: Sighting, path: str) -> web.StreamResponse:
        if request.method == "GET" and path == "/v1/models":
            return await self._tell(request, sighting, 200, _encode(_MODELS))
        return await self._refuse(request, sighting, 404, Malformed(f"there is no {request.method} {path} here"))

    async def _refuse(
        self, request: web.BaseRequest, sighting: Sighting, status: int, wrong: Malformed
    ) -> web.StreamResponse:
        return await self._tell(request, sighting, status, _error(request, status, wrong))

    async def _tell(self, request: web.BaseRequest, sighting: Sighting, status: int, body: bytes) -> web.StreamResponse:
        answer = await say(request, status, body)
        self._witness.ended(sighting, End.COMPLETED)
        return answer

    async def _cancelled(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.writer.output_size:
            return await say(request, STATUS_CANCELLED, _error(request, STATUS_CANCELLED, Malformed("cancelled")))
        # Half of a JSON document is out and nothing can end it well.
        if request.transport is not None:
            request.transport.close()
        return nothing()


def _error(request: web.BaseRequest, status: int, wrong: Malformed) -> bytes:
    if _DIALECTS.get(request.raw_path.partition("?")[0]) is Dialect.MESSAGES:
        return message.error_body(status, wrong.message, request.headers.get("x-request-id"))
    return error_body(status, wrong.message, wrong.param)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _json(status: int, value: Any) -> web.StreamResponse:
    return web.Response(status=status, body=_encode(value), content_type="application/json")


def _missing(message: str) -> web.StreamResponse:
    return web.Response(status=404, body=error_body(404, message), content_type="application/json")


@asynccontextmanager
async def running(
    *, host: str = "127.0.0.1", port: int = 0, interval_ms: float = DEFAULT_INTERVAL_MS
) -> AsyncIterator[str]:
    """Run a Router in this event loop and give its base URL; `OSError` when the port is taken."""
    loop = asyncio.get_running_loop()
    # How large a body may be is the gateway's decision, so no limit here. And without handler_cancellation
    # a handler would run on after its peer has left, when the moment of leaving is what tests ask for.
    server = web.Server(
        Router(Witness(time.time), Metronome(loop), interval_ms),
        request_factory=partial(web.BaseRequest, loop=loop, client_max_size=0),
        handler_cancellation=True,
        access_log=None,
    )
    listener = await loop.create_server(server, host, port, backlog=BACKLOG)
    try:
        bound = listener.sockets[0].getsockname()[1]
        yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
    finally:
        listener.close()
        await server.shutdown(GOODBYE_SECONDS)
        await listener.wait_closed()
