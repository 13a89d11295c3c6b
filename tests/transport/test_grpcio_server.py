"""What is true of grpcio behind the seam alone? Its writer, and what it can do that nobody must."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.transport.client import PATIENCE_SECONDS, Client
from tests.transport.servers import Serving
from transport.grpcio_server import GrpcioServer, _GrpcStream


@dataclass(slots=True)
class SlowContext:
    """grpcio's side of a call whose client reads late and has already ended its own side."""

    reads: asyncio.Event = field(default_factory=asyncio.Event)
    sent: list[bytes] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self) -> Any:
        await self.done.wait()
        return grpc.aio.EOF

    async def write(self, message: bytes) -> None:
        await self.reads.wait()
        self.sent.append(message)


async def test_a_call_does_not_end_before_all_that_other_tasks_wrote_is_sent() -> None:
    # White box: grpcio crashes the process when a call ends under a write, so it is not asked.
    context = SlowContext()
    stream = _GrpcStream(context)
    reading = asyncio.create_task(stream.read())
    await asyncio.sleep(0)
    for message in (b"0", b"1", b"2"):
        stream.write(message)
    await asyncio.sleep(0)
    context.done.set()
    assert await reading is None
    draining = asyncio.create_task(stream.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done(), "a message is being written"
    context.reads.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await draining
    assert context.sent == [b"0", b"1", b"2"]


async def test_messages_that_are_compressed_are_read(tmp_path: Path) -> None:
    message = b"x" * 10_000
    path = tmp_path / "s.sock"
    compressed = Client(f"unix:{path}", compression=grpc.Compression.Gzip)
    async with Serving(GrpcioServer, path)(), compressed as client:
        assert await client.unary(message) == message
        assert await client.stream().exchange(message) == message
