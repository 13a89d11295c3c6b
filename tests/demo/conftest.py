"""What does a test of the Router need? One on a port of its own, a client, and a way to wait for a fact."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from demo.router import running

CHAT = {"model": "demo-small", "messages": [{"role": "user", "content": "Explain gravity to me"}]}
MESSAGE = CHAT | {"max_tokens": 100}
COMPLETION = {"model": "demo-small", "prompt": "Explain gravity to me"}
INFER = {"model": "demo-small", "input": "Explain gravity to me"}
USAGE = {"stream_options": {"include_usage": True}}
STREAM = {"stream": True}
DEADLINE = 10


@dataclass(frozen=True, slots=True)
class Raw:
    """A bare connection, for tests that must see how it ends or what arrives in which piece."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> None:
        payload = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: demo", f"content-length: {len(payload)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + payload)
        await self.writer.drain()

    async def chunks(self) -> list[bytes]:
        """Read a chunked answer, chunk by chunk, up to the terminating one."""
        await self.reader.readuntil(b"\r\n\r\n")
        found = []
        while size := int(await self.reader.readline(), 16):
            found.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        return found

    def leave(self) -> None:
        self.writer.close()


@dataclass(frozen=True, slots=True)
class Desk:
    """A running Router and its client."""

    base_url: str
    http: httpx.AsyncClient
    opened: list[Raw]

    async def raw(self) -> Raw:
        url = httpx.URL(self.base_url)
        raw = Raw(*await asyncio.open_connection(url.host, url.port))
        self.opened.append(raw)
        return raw

    async def seen(self, request_id: str, when: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for a sighting until it satisfies `when`."""
        async with asyncio.timeout(DEADLINE):
            while True:
                answer = await self.http.get(f"/demo/seen/{request_id}")
                if answer.status_code == httpx.codes.OK and when(answer.json()):
                    return dict(answer.json())

    async def ended(self, request_id: str) -> dict[str, Any]:
        return await self.seen(request_id, lambda sighting: sighting["end"] != "running")


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    async with running(interval_ms=0) as base_url, httpx.AsyncClient(base_url=base_url) as http:
        desk = Desk(base_url, http, [])
        yield desk
        for raw in desk.opened:
            raw.leave()


def events(text: str) -> list[Any]:
    """Decode the data of an SSE body; the `[DONE]` at its end is checked and left out."""
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    assert blocks[-1] == "[DONE]"
    return [json.loads(block) for block in blocks[:-1]]
