"""Is a server well after what a hostile client did? One to be attacked, and what must hold afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.transport.hostile import BOUND_SECONDS, greeted, turned
from tests.transport.hostile_wire import NAME
from transport.address import UnixAddress
from transport.error_code import ConnectionFault
from transport.lean_server import LeanServer
from transport.service import Service, Stream

MEGABYTE = 1024 * 1024
BODY_LIMIT = 8 * MEGABYTE
# Longer than a test may take: a stop that waited for it would fail.
_GRACE_SECONDS = 600


@dataclass(slots=True)
class Attacked:
    """A server and what its handlers saw."""

    path: Path
    server: LeanServer = field(init=False)
    errors: list[Exception] = field(default_factory=list)
    started: int = 0
    running: int = 0
    most: int = 0
    cancelled: int = 0
    read: int = 0
    """Octets of messages that handlers have read."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def unary(self, request: bytes) -> bytes:
        async with self.counted():
            self.read += len(request)
            return request

    async def slow(self, request: bytes) -> bytes:
        """Answers when the gate opens."""
        async with self.counted():
            await self.gate.wait()
            return request

    async def echo(self, stream: Stream) -> None:
        async with self.counted():
            while (message := await stream.read()) is not None:
                self.read += len(message)
                stream.write(message)

    async def sink(self, stream: Stream) -> None:
        """Reads all, and says how much it was."""
        async with self.counted():
            count = 0
            while (message := await stream.read()) is not None:
                self.read += len(message)
                count += len(message)
            stream.write(str(count).encode())

    async def deaf(self, stream: Stream) -> None:
        """Reads nothing until the gate opens."""
        async with self.counted():
            await self.gate.wait()
            await self.drain(stream)

    async def stubborn(self, stream: Stream) -> None:
        """Is still at it when it was cancelled, until the gate opens."""
        async with self.counted():
            try:
                await stream.read()
            finally:
                await self.gate.wait()

    async def lost(self, request: bytes) -> bytes:
        """Waits for what somebody else has cancelled."""
        async with self.counted():
            future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(future.cancel)
            return request + await future

    async def drain(self, stream: Stream) -> None:
        while (message := await stream.read()) is not None:
            self.read += len(message)

    async def gush(self, stream: Stream) -> None:
        """Answers each message with as many octets as it says."""
        async with self.counted():
            while (message := await stream.read()) is not None:
                stream.write(gushed(int(message)))

    async def idle(self) -> None:
        """Wait until no handler runs."""
        await turned(lambda: not self.running)


def gushed(length: int) -> bytes:
    """So many octets, in which no two neighbours of 256 are alike."""
    return (bytes(range(256)) * (length // 256 + 1))[:length]


@asynccontextmanager
async def attacked(path: Path) -> AsyncIterator[Attacked]:
    """Serve, and look at the end whether all is well: clients have left, so no handler and no task of theirs is left, a
    new client is answered, no defect was observed, and stopping takes no grace."""
    before = asyncio.all_tasks()
    at = Attacked(path)
    service = Service(
        name=NAME,
        unary={"Unary": at.unary, "Slow": at.slow, "Lost": at.lost},
        streams={"Echo": at.echo, "Sink": at.sink, "Deaf": at.deaf, "Gush": at.gush, "Stubborn": at.stubborn},
    )
    at.server = LeanServer(
        [service], address=UnixAddress(path=path), max_body_bytes=BODY_LIMIT, observe_error=at.errors.append
    )
    await at.server.start()
    try:
        yield at
        await _is_well(at)
    finally:
        async with asyncio.timeout(BOUND_SECONDS):
            await at.server.stop(_GRACE_SECONDS)
    await _ended(before)


async def _is_well(at: Attacked) -> None:
    await at.idle()
    async with greeted(at.path) as client:
        await client.is_good(1)
    await at.idle()
    assert not [error for error in at.errors if not isinstance(error, ConnectionFault)], at.errors


async def _ended(before: set[asyncio.Task[object]]) -> None:
    """Every task that the server began has ended."""
    async with asyncio.timeout(BOUND_SECONDS):
        while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.wait(left)


@pytest.fixture
async def victim(tmp_path: Path) -> AsyncIterator[Attacked]:
    path = tmp_path / "s.sock"
    assert len(str(path)) < 107
    async with attacked(path) as at:
        yield at
