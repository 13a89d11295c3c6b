"""What if a connection breaks, or goes silent? A relay between a client and a server, which does so when it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.transport.client import PATIENCE_SECONDS

# RFC 9113 section 6.7: 8 octets of PING with the flag ACK, on stream 0.
_PING_ACK = b"\x00\x00\x08\x06\x01\x00\x00\x00\x00"
_CHUNK = 65_536


@dataclass(slots=True)
class Relay:
    """Passes bytes between its clients and the server."""

    server: Path
    connections: int = 0
    heard: int = 0
    """Octets that the server was given."""
    _said: bytearray = field(default_factory=bytearray)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _free: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _held: bool = False

    def cut(self) -> None:
        """Break every connection, on both sides, without a word of HTTP/2."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def connected(self) -> bool:
        """Whether a connection passes."""
        return bool(self._writers)

    def hold(self) -> None:
        """From now on nothing that a client sends arrives."""
        self._held = True

    def pause(self) -> None:
        """Until `go_on` nothing that the server says arrives."""
        self._free.clear()

    def go_on(self) -> None:
        """Let the server be heard."""
        self._free.set()

    async def signs_of_life(self, count: int) -> None:
        """Wait until the server has answered so many more pings."""
        count += self._said.count(_PING_ACK)
        await self._until(lambda: self._said.count(_PING_ACK) >= count)

    async def hears(self, octets: int) -> None:
        """Wait until the server was given so many in all."""
        await self._until(lambda: self.heard >= octets)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():
                self._moved.clear()
                await self._moved.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection."""
        self.connections += 1
        inner_reader, inner_writer = await asyncio.open_unix_connection(self.server)
        writers = {writer, inner_writer}
        self._writers |= writers
        try:
            await asyncio.gather(self._pass_up(reader, inner_writer), self._pass_down(inner_reader, writer))
        finally:
            self._writers -= writers

    async def _pass_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                if not self._held:
                    writer.write(chunk)
                    await writer.drain()
                    self.heard += len(chunk)
                    self._moved.set()
        writer.transport.abort()

    async def _pass_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                self._said += chunk
                self._moved.set()
                await self._free.wait()
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def relayed(server: Path) -> AsyncIterator[tuple[Relay, str]]:
    """A relay to the server's socket, and the target for clients."""
    relay = Relay(server)
    relay.go_on()
    path = server.with_suffix(".relay")
    async with await asyncio.start_unix_server(relay.serve, path):
        try:
            yield relay, f"unix:{path}"
        finally:
            relay.go_on()
            relay.cut()
