"""What does a gRPC server cost by itself? Handlers that parse what Envoy sends and answer with bytes made beforehand.

`python -m tests.bench.transport_server NAME SOCKET`: on one of `SERVERS`, in a process as a worker is.
"""

import gc
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from authz import service as authz_service
from extproc import process
from sidecar.lifetime import termination
from transport.address import UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.lean_server import LeanServer
from transport.service import Service, Stream
from wire.messages import CheckRequest, CheckResponse, ProcessingRequest, ProcessingResponse

SERVERS: Mapping[str, type[GrpcioServer | LeanServer]] = {"grpcio": GrpcioServer, "lean": LeanServer}

# One exchange of ext_proc, as transport_envoy.py configures it.
PHASES = ("request_headers", "request_body", "response_headers", "response_body")
_MAX_BODY_BYTES = 4 * 1024 * 1024


def _allowed() -> bytes:
    message = CheckResponse()
    message.ok_response.SetInParent()
    return bytes(message.SerializeToString())


def _passed(phase: str) -> bytes:
    message = ProcessingResponse()
    getattr(message, phase).response.SetInParent()
    return bytes(message.SerializeToString())


_ALLOWED = _allowed()
_PASSED = {phase: _passed(phase) for phase in PHASES}


async def _check(raw: bytes) -> bytes:
    CheckRequest.FromString(raw)
    return _ALLOWED


async def _process(stream: Stream) -> None:
    while (raw := await stream.read()) is not None:
        stream.write(_PASSED[ProcessingRequest.FromString(raw).WhichOneof("request")])


def _fail(error: Exception) -> None:
    sys.stderr.write(f"{error!r}\n")


async def serve(name: str, path: Path) -> None:
    services = [
        Service(name=authz_service.SERVICE_NAME, unary={"Check": _check}, streams={}),
        Service(name=process.SERVICE_NAME, unary={}, streams={"Process": _process}),
    ]
    server = SERVERS[name](
        services, address=UnixAddress(path=path), max_body_bytes=_MAX_BODY_BYTES, observe_error=_fail
    )
    terminated = termination()
    await server.start()
    gc.collect()
    gc.freeze()
    await terminated.wait()
    await server.stop(0)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], Path(sys.argv[2])))
