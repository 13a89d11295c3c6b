"""How does a client that we did not write call a server? grpcio's own, each with a connection of its own."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Self

import grpc

PATIENCE_SECONDS = 30.0
_OWN_CONNECTION = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is found soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class Call:
    """A running stream, as its client sees it. Whatever does not come in time is a `TimeoutError`."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, message: bytes) -> None:
        """Wait until the message is accepted for sending."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._call.write(message)

    async def receive(self) -> bytes | None:
        """The next answer; None at the end of a call that went well."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await self._call.read()
        return None if answer is grpc.aio.EOF else bytes(answer)

    async def receive_all(self) -> list[bytes]:
        """All answers up to the end."""
        answers = []
        while (answer := await self.receive()) is not None:
            answers.append(answer)
        return answers

    async def exchange(self, message: bytes) -> bytes | None:
        """Send, and wait for one answer."""
        await self.send(message)
        return await self.receive()

    async def end(self) -> None:
        """Send nothing more."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._call.done_writing()

    async def outcome(self) -> grpc.StatusCode:
        """How the call ended; of a stream, after all that had been sent, which grpcio's client wants read first."""
        if isinstance(self._call, grpc.aio.StreamStreamCall | grpc.aio.UnaryStreamCall):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self.receive_all()
        return await self.code()

    async def code(self) -> grpc.StatusCode:
        """How the call ended, when no answer is left to be read."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._call.code()

    async def details(self) -> str:
        """What the server said of the end."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return str(await self._call.details())

    def cancel(self) -> None:
        """Leave."""
        self._call.cancel()


class Client:
    """A channel that shares its connection with no other."""

    def __init__(
        self, target: str, options: Sequence[tuple[str, Any]] = (), compression: grpc.Compression | None = None
    ) -> None:
        self.channel = grpc.aio.insecure_channel(target, options=[*_OWN_CONNECTION, *options], compression=compression)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    def start(self, request: bytes, method: str = "test.Service/Unary", **arguments: Any) -> Call:
        """Begin a unary call."""
        return Call(self.channel.unary_unary(f"/{method}")(request, **arguments))

    async def unary(self, request: bytes, method: str = "test.Service/Unary", **arguments: Any) -> bytes:
        """The answer; raises AioRpcError."""
        arguments.setdefault("timeout", PATIENCE_SECONDS)
        return bytes(await self.channel.unary_unary(f"/{method}")(request, **arguments))

    def stream(self, method: str = "test.Service/Stream", **arguments: Any) -> Call:
        """Begin a stream."""
        return Call(self.channel.stream_stream(f"/{method}")(**arguments))

    def last_words(self, message: bytes, method: str = "test.Service/Stream") -> Call:
        """Begin a stream with the only message that its client ever sends."""
        return Call(self.channel.unary_stream(f"/{method}")(message))
