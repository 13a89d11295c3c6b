"""Is a service serving? The standard gRPC health service, on the transport seam.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections.abc import Iterable

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from transport.service import Service, Stream

SERVICE_NAME = "grpc.health.v1.Health"


class Health:
    """Health of the named services and of the whole server, whose name is the empty string."""

    def __init__(self, services: Iterable[str]) -> None:
        self._known = frozenset({"", *services})
        self._serving = True
        self._changed = asyncio.Event()

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={"Check": self.check}, streams={"Watch": self.watch}, endless=True)

    def stop_serving(self) -> None:
        """From now on, and for good: not serving."""
        self._serving = False
        self._changed.set()

    async def check(self, raw: bytes) -> bytes:
        """The health of one service now."""
        return self._status(HealthCheckRequest.FromString(raw).service)

    async def watch(self, stream: Stream) -> None:
        """The health of one service, and each change of it."""
        raw = await stream.read()
        if raw is None:
            return
        name = HealthCheckRequest.FromString(raw).service
        sent = self._status(name)
        stream.write(sent)
        # A client that watches ends its own side at once; when it is gone, the server cancels this handler.
        flushed = asyncio.ensure_future(stream.read())
        try:
            await self._changed.wait()
        finally:
            flushed.cancel()
        if self._status(name) != sent:
            stream.write(self._status(name))

    def _status(self, name: str) -> bytes:
        if name not in self._known:
            status = HealthCheckResponse.SERVICE_UNKNOWN
        else:
            status = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        return bytes(HealthCheckResponse(status=status).SerializeToString())
