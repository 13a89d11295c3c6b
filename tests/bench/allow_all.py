"""What is the least that a sidecar can cost? One that says yes to everything, with answers made beforehand.

`python -m tests.bench.allow_all lean|grpcio SOCKET`. The same server and the same exchanges as the gateway's, and no
work behind them.
"""

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from authz import service as authz_service
from extproc import access_log, process, wire
from sidecar.grpc_health import Health
from sidecar.listening import Transport
from transport.address import UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.lean_server import LeanServer
from transport.service import Service, Stream
from wire.messages import CheckResponse

_MAX_BODY_BYTES = 4 * 1024 * 1024
_ALLOWED = CheckResponse()
_ALLOWED.ok_response.SetInParent()
_CHECKED = bytes(_ALLOWED.SerializeToString())
_PASSED = wire.let_pass(record="", body=None, strip_usage=False)


async def _check(raw: bytes) -> bytes:
    del raw
    return _CHECKED


async def _process(stream: Stream) -> None:
    while await stream.read() is not None:
        stream.write(_PASSED)


async def _drain(stream: Stream) -> None:
    while await stream.read() is not None:
        pass


def _fail(error: Exception) -> None:
    sys.stderr.write(f"{error!r}\n")


async def serve(transport: Transport, path: Path) -> None:
    services = [
        Service(name=authz_service.SERVICE_NAME, unary={"Check": _check}, streams={}),
        Service(name=process.SERVICE_NAME, unary={}, streams={"Process": _process}),
        Service(name=access_log.SERVICE_NAME, unary={}, streams={"StreamAccessLogs": _drain}),
    ]
    health = Health(service.name for service in services)
    server = (LeanServer if transport is Transport.LEAN else GrpcioServer)(
        [*services, health.service()],
        address=UnixAddress(path=path),
        max_body_bytes=_MAX_BODY_BYTES,
        observe_error=_fail,
    )
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await server.start()
    await terminated.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(Transport(sys.argv[1]), Path(sys.argv[2])))
