"""An endpoint for webhooks: real HTTP, which answers as it is told and keeps what it got."""

import asyncio
import contextlib
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import msgspec

_END = b"\r\n\r\n"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Got:
    """One POST, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def request_id(self) -> str:
        """Of which request it tells."""
        subject: str = msgspec.json.decode(self.body)["subject"]
        return subject


def status(code: int, *headers: str) -> bytes:
    """An answer without a body."""
    lines = [f"HTTP/1.1 {code} Whatever", "content-length: 0", *headers]
    return "\r\n".join(lines).encode() + _END


@dataclass(slots=True)
class Endpoint:
    """Answers with `answers` in turn, then with 204; while `hanging` is set, with nothing."""

    port: int = 0
    got: list[Got] = field(default_factory=list)
    answers: deque[bytes] = field(default_factory=deque)
    hanging: bool = False
    at_once: int = 0
    most_at_once: int = 0
    connections: int = 0
    tls: bool = False

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}/in"

    def times(self) -> Counter[str]:
        """How often each request was told of."""
        return Counter(got.request_id for got in self.got)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                while await self._answered(reader, writer):
                    pass
            finally:
                writer.close()
                await writer.wait_closed()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(_END)).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = await reader.readexactly(int(headers["content-length"]))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.got.append(Got(head[0].split(" ")[1], headers, body))
            if self.hanging:
                await reader.read()  # until the other side has had enough
                return False
            answer = self.answers.popleft() if self.answers else OK
            writer.write(answer)
            await writer.drain()
            return answer.startswith(b"HTTP")
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """An endpoint on a port of its own."""
    endpoint, serving = Endpoint(tls=tls is not None), set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(endpoint.serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls) as server:
        endpoint.port = server.sockets[0].getsockname()[1]
        yield endpoint
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
