"""A Router that says what a test wrote down, byte for byte and piece by piece, over HTTP/1.1."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

# Of a request: which answer it is to get.
ANSWER = "x-test-answer"
# Envoy reads what is there when it is woken. Longer than it takes to be; a piece that comes too early joins the last.
_PAUSE_SECONDS = 0.003


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The pieces of a body, each written by itself; chunked, unless `headers` say how long it is.

    `broken` ends it with a closed connection. `hangs` never ends it, `silent` does not even begin.
    """

    pieces: Sequence[bytes]
    headers: tuple[tuple[str, bytes], ...] = (("content-type", b"text/event-stream"),)
    status: int = 200
    broken: bool = False
    hangs: bool = False
    silent: bool = False


@dataclass(slots=True)
class RawRouter:
    """The answers that tests have put here, by name, and the heads of the requests that it got."""

    answers: dict[str, RawAnswer] = field(default_factory=dict)
    heads: dict[str, bytes] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                headers = dict(line.decode().split(": ", 1) for line in head.splitlines()[1:] if line)
                await reader.readexactly(int(headers.get("content-length", "0")))
                name = headers[ANSWER]
                self.heads[name] = head
                await _answer(reader, writer, self.answers[name])
        writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: RawAnswer) -> None:
    if answer.silent:
        await reader.read(1)
        raise ConnectionResetError
    writer.write(b"HTTP/1.1 %d OK\r\n" % answer.status)
    for name, value in answer.headers:
        writer.write(b"%b: %b\r\n" % (name.encode(), value))
    chunked = all(name != "content-length" for name, _ in answer.headers)
    writer.write(b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n")
    for piece in answer.pieces:
        if piece:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            await asyncio.sleep(_PAUSE_SECONDS)
    if answer.hangs:
        await reader.read(1)
        raise ConnectionResetError
    if answer.broken:
        raise ConnectionResetError
    if chunked:
        writer.write(b"0\r\n\r\n")
        await writer.drain()
