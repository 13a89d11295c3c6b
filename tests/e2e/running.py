"""A request that runs through the gateway, held by a client that notes what comes of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.gateway import Gateway, Tenant, until

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
SLOW = {"x-demo-events": "50000", "x-demo-interval-ms": "20"}


@dataclass(slots=True)
class Running:
    """One request and what its client has seen of it."""

    status: int = 0
    request_id: str = ""
    data: list[str] = field(default_factory=list)
    body: bytes = b""
    broken: bool = False
    """Whether the answer broke off."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None]" = field(init=False)

    @property
    def events(self) -> int:
        return len(self.data)

    async def seen(self, count: int) -> None:
        """Wait until so many events have come."""

        async def enough() -> bool:
            return self.events >= count or self.task.done()

        await until(enough)
        assert self.events >= count, (self.status, self.body, self.broken)

    async def ended(self) -> None:
        async with asyncio.timeout(30):
            await self.task

    @property
    def last_error(self) -> str:
        """The code of the error that the stream's last event but one says."""
        *_, last, done = self.data
        assert done == "[DONE]"
        return str(json.loads(last)["error"]["code"])

    @property
    def error(self) -> str:
        """The code of an answer that is an error."""
        return str(json.loads(self.body)["error"]["code"])


@contextlib.asynccontextmanager
async def running(
    client: httpx.AsyncClient, *, path: str = CHAT, body: dict[str, Any] | None = None, headers: dict[str, str] = SLOW
) -> AsyncIterator[Running]:
    """A request, until the end of the block."""
    found = Running()
    found.task = asyncio.create_task(_follow(client, found, path, BODY if body is None else body, headers))
    try:
        yield found
    finally:
        found.task.cancel()
        await asyncio.gather(found.task, return_exceptions=True)


async def _follow(
    client: httpx.AsyncClient, found: Running, path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    try:
        async with client.stream("POST", path, json=body, headers=headers) as response:
            found.status, found.request_id = response.status_code, response.headers["x-request-id"]
            found.begun.set()
            async for line in response.aiter_lines():
                found.body += line.encode()
                if line.startswith("data: "):
                    found.data.append(line.removeprefix("data: "))
    except httpx.HTTPError:
        found.broken = True


async def open_request(gateway: Gateway, tenant: Tenant) -> str:
    """The id of the tenant's one request that runs, as the gateway itself tells it."""
    async with gateway.client(tenant) as client:

        async def found() -> str | None:
            answer = await client.get("/v1/requests", params={"state": "admitted,dispatched,streaming"})
            assert answer.status_code == 200, answer.text
            data = answer.json()["data"]
            return str(data[0]["id"]) if data else None

        request_id = await until(found)
    assert request_id is not None
    return request_id


async def router_end(gateway: Gateway, request_id: str) -> str:
    """How the request ended for the Router."""

    async def ended() -> str | None:
        seen = await gateway.seen(request_id)
        return seen["end"] if seen and seen["ended_at"] else None

    return str(await until(ended))
