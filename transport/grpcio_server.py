"""How do services meet gRPC? grpcio's server behind the transport seam: bytes in, bytes out.

Generic handlers without serialisers, and `context.read/write` instead of generators: the cheapest that grpcio has
(docs/adr/0002-grpcio-behind-a-byte-seam.md).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc

from transport.address import Address, UnixAddress
from transport.service import Service, StreamHandler, UnaryHandler
from transport.tls import Tls

_LINGER_SECONDS = 0.25
# A request's body comes in one message, with the metadata around it.
_HEADROOM_BYTES = 1_048_576
# What an answer that passes in line brings at once was up to 2 MiB, whatever a request may bring.
_LEAST_BYTES = 4_194_304
_MOST_WAITING = 100_000
_FAILED = "the handler failed"


class GrpcioServer:
    """Serves at `address`, in plaintext without `tls`; `max_body_bytes` bounds what a message may hold.

    A Unix socket's path must be this process's alone: grpcio unlinks it on stop, even when another process has bound it
    since.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        address: Address,
        max_body_bytes: int,
        observe_error: Callable[[Exception], None],
        tls: Tls | None = None,
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
                # What waits to be taken on is Envoy's, who bounds it. By default grpcio resets some of what comes while
                # 1,000 calls wait.
                ("grpc.server.max_pending_requests", _MOST_WAITING),
                ("grpc.server.max_pending_requests_hard_limit", _MOST_WAITING),
                # By default grpcio shares a port with whoever has it, and each gets some of the connections.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers([self._generic_handler(service) for service in services])
        self._address = address
        self._tls = tls
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._endless: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Bind and serve. A socket that a killed predecessor left behind is replaced."""
        if isinstance(self._address, UnixAddress):
            self._address.path.unlink(missing_ok=True)
        if self._tls is None:
            self._server.add_insecure_port(str(self._address))
        else:
            self._server.add_secure_port(str(self._address), _credentials(self._tls))
        await self._server.start()
        if isinstance(self._address, UnixAddress):
            self._address.path.chmod(self._address.mode)

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
            self._begin()
            try:
                async with self._told(context):
                    return await handler(request)
            finally:
                self._end()

        return grpc.unary_unary_rpc_method_handler(call)

    def _stream(self, handler: StreamHandler, *, waited_for: bool) -> grpc.RpcMethodHandler:
        async def call(_: Any, context: Any) -> None:
            stream = _GrpcStream(context)
            if waited_for:
                self._begin()
            try:
                async with self._told(context):
                    await (handler(stream) if waited_for else self._until_stopped(handler(stream)))
                    await stream.drain()
            finally:
                stream.abandon()
                if waited_for:
                    self._end()

        return grpc.stream_stream_rpc_method_handler(call)

    @contextlib.asynccontextmanager
    async def _told(self, context: Any) -> AsyncIterator[None]:
        """Tell whom it concerns when a handler fails.

        Left to itself grpcio tells the client the text of an exception, and tells a client whose handler ends with a
        CancelledError of its own nothing at all.
        """
        try:
            yield
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            await context.abort(grpc.StatusCode.UNKNOWN, _FAILED)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its caller is told that it failed
            self._observe_error(error)
            await context.abort(grpc.StatusCode.UNKNOWN, _FAILED)

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


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)], root_certificates=tls.client_ca, require_client_auth=True
    )


class _GrpcStream:
    """A call of grpcio as a `transport.service.Stream`.

    grpcio allows one write at a time. Writes are queued, and leave with the next read, which a handler that has
    answered does at once; only a write that comes while a read waits needs a task of its own.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._queue: deque[bytes] = deque()
        self._reading = False
        self._writer: asyncio.Task[None] | None = None

    async def read(self) -> bytes | None:
        if self._queue:
            # A read may be given up, a write of grpcio's may not: the next would be one too many at a time.
            await asyncio.shield(self._flushing())
        self._reading = True
        try:
            message = await self._context.read()
        except grpc.aio.BaseError:
            return None  # the client is gone, or the server stopped in that moment
        finally:
            self._reading = False
        return None if message is grpc.aio.EOF else message

    def write(self, message: bytes) -> None:
        self._queue.append(message)
        if self._reading:
            self._flushing()

    async def drain(self) -> None:
        """Send what is queued, whoever has begun to."""
        while self._queue or (self._writer is not None and not self._writer.done()):
            await self._flushing()

    def abandon(self) -> None:
        """The call is over: what could not be sent is not sent."""
        self._queue.clear()
        if self._writer is not None:
            self._writer.cancel()

    def _flushing(self) -> "asyncio.Task[None]":
        """What sends the queue, until it is empty: one at a time."""
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._flush())
        return self._writer

    async def _flush(self) -> None:
        try:
            while self._queue:
                await self._context.write(self._queue.popleft())
        except grpc.aio.BaseError:
            self._queue.clear()  # the client is gone: the next read says so
