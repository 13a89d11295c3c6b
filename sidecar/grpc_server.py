"""How do services meet gRPC? grpcio's server behind the transport seam: bytes in, bytes out.

Generic handlers without serialisers, and `context.read/write` instead of generators: the cheapest that grpcio has
(docs/adr/0002-grpcio-behind-a-byte-seam.md).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from wire.transport import Service, StreamHandler, UnaryHandler

_LINGER_SECONDS = 0.25
# A request's body comes in one message, with the metadata around it.
_HEADROOM_BYTES = 1_048_576
# What an answer that passes in line brings at once was up to 2 MiB, whatever a request may bring.
_LEAST_BYTES = 4_194_304


class GrpcServer:
    """Serves on a Unix socket of file mode `mode`. `max_body_bytes` bounds what a message may hold.

    The socket's path must be this process's alone: grpcio unlinks it on stop, even when another process has bound it
    since.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        path: Path,
        max_body_bytes: int,
        observe_error: Callable[[Exception], None],
        mode: int = 0o600,
    ) -> None:
        limit = max(max_body_bytes, _LEAST_BYTES) + _HEADROOM_BYTES
        self._observe_error = observe_error
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                # Envoy asks for a sign of life while a long answer passes and nothing else does. By default grpcio
                # takes the third such ping within five minutes for abuse, and closes the connection with its streams.
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        self._server.add_generic_rpc_handlers([self._generic_handler(service) for service in services])
        self._path = path
        self._mode = mode
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._endless: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Bind and serve. A socket that a killed predecessor left behind is replaced."""
        self._path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()
        self._path.chmod(self._mode)

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let the running ones finish for so long, then end them and the endless ones."""
        stopping = asyncio.ensure_future(self._server.stop(grace_seconds))
        idle = asyncio.ensure_future(self._idle.wait())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if not stopping.done():
            # What the last calls left behind still comes over the endless streams: the access log, in small batches.
            await asyncio.wait({stopping}, timeout=_LINGER_SECONDS)
        # Not by a second stop of grpcio's: two at once may crash the process (segmentation fault, grpcio 1.85).
        for endless in self._endless:
            endless.cancel()
        await stopping

    def _generic_handler(self, service: Service) -> grpc.GenericRpcHandler:
        handlers = {name: self._unary(handler) for name, handler in service.unary.items()}
        handlers |= {
            name: self._stream(handler, waited_for=not service.endless) for name, handler in service.streams.items()
        }
        return grpc.method_handlers_generic_handler(service.name, handlers)

    def _unary(self, handler: UnaryHandler) -> grpc.RpcMethodHandler:
        async def call(request: bytes, context: Any) -> bytes:
            del context
            self._begin()
            try:
                return await handler(request)
            except Exception as error:
                self._observe_error(error)
                raise
            finally:
                self._end()

        return grpc.unary_unary_rpc_method_handler(call)

    def _stream(self, handler: StreamHandler, *, waited_for: bool) -> grpc.RpcMethodHandler:
        async def call(_: Any, context: Any) -> None:
            stream = _GrpcStream(context)
            if waited_for:
                self._begin()
            try:
                await (handler(stream) if waited_for else self._until_stopped(handler(stream)))
                await stream.drain()
            except Exception as error:
                self._observe_error(error)
                raise
            finally:
                if waited_for:
                    self._end()

        return grpc.stream_stream_rpc_method_handler(call)

    async def _until_stopped(self, work: Awaitable[None]) -> None:
        """Do it to its end, or until the server stops."""
        task = asyncio.ensure_future(work)
        self._endless.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._endless.discard(task)
            task.cancel()
        if not task.cancelled():
            task.result()

    def _begin(self) -> None:
        self._running += 1
        self._idle.clear()

    def _end(self) -> None:
        self._running -= 1
        if self._running == 0:
            self._idle.set()


class _GrpcStream:
    """A call of grpcio as a `wire.transport.Stream`.

    grpcio allows one write at a time. Writes are queued, and leave with the next read, which a handler that has
    answered does at once; only a write that comes while a read waits needs a task of its own.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._queue: deque[bytes] = deque()
        self._reading = False
        self._writing = False
        self._writer: asyncio.Task[None] | None = None

    async def read(self) -> bytes | None:
        await self.flush()
        self._reading = True
        try:
            message = await self._context.read()
        finally:
            self._reading = False
        return None if message is grpc.aio.EOF else message

    def write(self, message: bytes) -> None:
        self._queue.append(message)
        if self._reading and not self._writing and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self.flush())

    async def drain(self) -> None:
        """Send what is queued, whoever has begun to."""
        if self._writer is not None:
            await self._writer
        await self.flush()

    async def flush(self) -> None:
        """Send what is queued, unless that is being done."""
        if self._writing:
            return
        self._writing = True
        try:
            while self._queue:
                await self._context.write(self._queue.popleft())
        finally:
            self._writing = False
