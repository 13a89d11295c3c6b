"""What does the shipped Envoy do with our messages? It runs here with a sidecar that is no more than `extproc.wire`.

Real Envoy, real gRPC, the stand-in Router; but everybody is let in, under whatever limits a test says.
"""

import asyncio
import contextlib
import json
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from authz.refusal import Refusal
from authz.routes import dialect_of
from authz.wire import ARRIVAL_KEY, DEADLINE_HEADER, GRANT_KEY, METERING_HEADER
from demo import router
from extproc import wire
from extproc.inline import InlineResponse
from extproc.log_entry import LogEntry, log_entries
from extproc.wire import Phase
from sidecar.embedded.certificates import ensure_certificates
from sidecar.embedded.envoy_server import envoy_command
from sidecar.embedded.ports import free_port, http_status
from sidecar.envoy_config import EnvoyAddresses, render
from sidecar.grpc_health import Health
from sidecar.process import Child, wait_until_ready
from sidecar.sockets import recorder_socket, worker_socket
from tests.support.postgres import Loop, running_loop
from tests.support.values import NOON_MS
from transport.address import UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.service import Service, Stream
from wire.messages import CheckRequest, CheckResponse

CORS_ORIGIN = "https://app.example"
# Of the stand-in for Check: which metering it is to ask for.
METERING = "x-test-metering"
# And which deadline, in milliseconds.
DEADLINE = "x-test-deadline"
_OK = 200


def _check(raw: bytes) -> bytes:
    http = CheckRequest.FromString(raw).attributes.request.http
    headers = http.headers
    response = CheckResponse()
    if METERING in headers:
        metering = response.ok_response.headers.add().header
        metering.key, metering.value = METERING_HEADER, headers[METERING]
    if DEADLINE in headers:
        deadline = response.ok_response.headers.add().header
        deadline.key, deadline.value = DEADLINE_HEADER, headers[DEADLINE]
    response.ok_response.headers_to_remove.extend(("accept-encoding", "content-length"))
    fields = response.dynamic_metadata.fields
    fields[GRANT_KEY].string_value = headers["x-request-id"]
    fields[ARRIVAL_KEY].string_value = http.path
    return bytes(response.SerializeToString())


@dataclass(slots=True)
class SmallSidecar:
    """Answers Envoy with `told` for everybody, or with `refusal`, and keeps the access log."""

    told: tuple[tuple[str, str], ...] = ()
    refusal: Refusal | None = None
    strip_usage: bool = True
    entries: dict[str, LogEntry] = field(default_factory=dict)

    def services(self) -> list[Service]:
        return [
            Service(name="envoy.service.auth.v3.Authorization", unary={"Check": self._check}, streams={}),
            Service(name="envoy.service.ext_proc.v3.ExternalProcessor", unary={}, streams={"Process": self._process}),
            Service(
                name="envoy.service.accesslog.v3.AccessLogService",
                unary={},
                streams={"StreamAccessLogs": self._follow},
                endless=True,
            ),
        ]

    async def _check(self, raw: bytes) -> bytes:
        return _check(raw)

    async def _process(self, stream: Stream) -> None:
        response = InlineResponse(strip_usage=self.strip_usage)
        while (raw := await stream.read()) is not None:
            phase, message = wire.read(raw)
            if phase == Phase.REQUEST_BODY:
                stream.write(self._admitted(message))
            elif phase == Phase.RESPONSE_HEADERS:
                stream.write(response.headers(message))
            elif phase == Phase.RESPONSE_BODY:
                for reply in response.body(message, now_ms=NOON_MS):
                    stream.write(reply)
            elif phase == Phase.RESPONSE_TRAILERS:
                for reply in response.trailers():
                    stream.write(reply)

    def _admitted(self, message: Any) -> bytes:
        request_id, path = wire.grant_and_arrival(message)
        if self.refusal is not None:
            return wire.refuse(self.refusal, dialect=dialect_of(path), request_id=request_id, now=NOON_MS / 1000)
        return wire.let_pass(record=request_id, body=None, strip_usage=self.strip_usage, headers=self.told)

    async def _follow(self, stream: Stream) -> None:
        while (raw := await stream.read()) is not None:
            for entry in log_entries(raw):
                if entry.is_end:
                    # The small sidecar writes the request's id in place of the record and of the grant.
                    self.entries[entry.record or entry.grant_and_arrival[0]] = entry


@dataclass(slots=True, kw_only=True)
class RealEnvoy:
    """One Envoy, and who stands before and behind it."""

    folder: Path
    port: int
    sidecar: SmallSidecar

    def client(self, *, http2: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=ssl.create_default_context(cafile=self.folder / "tls" / "ca.pem"),
            http1=not http2,
            http2=http2,
            timeout=httpx.Timeout(30.0),
        )

    async def entry(self, answer: httpx.Response) -> LogEntry:
        """What the access log says of a request, when it does."""
        async with asyncio.timeout(30):
            while True:
                entry = self.sidecar.entries.get(answer.headers["x-request-id"])
                if entry is not None:
                    return entry
                await asyncio.sleep(0.01)

    async def allocated(self) -> int:
        """How many bytes Envoy holds."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / "envoy.sock"))
        async with httpx.AsyncClient(transport=transport) as admin:
            return int((await admin.get("http://envoy/memory")).json()["allocated"])


async def _start_envoy(folder: Path, port: int, router_port: int) -> Child:
    ensure_certificates(folder / "tls")
    addresses = EnvoyAddresses(
        port=port,
        address="127.0.0.1",
        tls_dir=folder / "tls",
        socket_dir=folder,
        workers=1,
        router=f"127.0.0.1:{router_port}",
        admin_socket=folder / "envoy.sock",
        max_body_bytes=1_000_000,
        cors_origins=(CORS_ORIGIN,),
    )
    config = folder / "envoy.yaml"
    config.write_text(render(addresses))
    envoy = await Child.start(envoy_command(config, concurrency=1), lambda _, __: None)
    tls = ssl.create_default_context(cafile=folder / "tls" / "ca.pem")

    async def answers() -> bool:
        return await http_status(port, "/healthz", tls=tls) == _OK

    await wait_until_ready(envoy, answers, seconds=30)
    return envoy


@contextlib.asynccontextmanager
async def _serving(
    folder: Path, sidecar: SmallSidecar, behind: contextlib.AbstractAsyncContextManager[str]
) -> AsyncIterator[int]:
    """Everybody but the client; gives Envoy's port."""
    services = sidecar.services()
    health = Health(service.name for service in services)
    errors: list[Exception] = []
    servers = [
        GrpcioServer(
            [*services, health.service()],
            address=UnixAddress(path=path),
            max_body_bytes=1_000_000,
            observe_error=errors.append,
        )
        for path in (worker_socket(folder, 0), recorder_socket(folder))
    ]
    async with behind as url:
        for server in servers:
            await server.start()
        port = free_port()
        envoy = await _start_envoy(folder, port, httpx.URL(url).port or 0)
        try:
            yield port
        finally:
            await envoy.stop()
            for server in servers:
                await server.stop(0)
    assert errors == []


@contextlib.contextmanager
def running(
    behind: Callable[[], contextlib.AbstractAsyncContextManager[str]] | None = None,
) -> Iterator[RealEnvoy]:
    """An Envoy of its own, until the end of the block; `behind` it the stand-in Router, or another one."""
    # Not pytest's folder: a socket's path holds 107 bytes.
    folder, sidecar = Path(tempfile.mkdtemp(prefix="gw-wire-")), SmallSidecar()
    with running_loop() as loop:
        serving = _serving(folder, sidecar, behind() if behind is not None else router.running(interval_ms=1))
        try:
            yield RealEnvoy(folder=folder, port=loop.run(_entered(serving)), sidecar=sidecar)
        finally:
            _leave(loop, serving)
            shutil.rmtree(folder, ignore_errors=True)


async def _entered(serving: contextlib.AbstractAsyncContextManager[int]) -> int:
    return await serving.__aenter__()


def _leave(loop: Loop, serving: contextlib.AbstractAsyncContextManager[int]) -> None:
    async def left() -> None:
        await serving.__aexit__(None, None, None)

    loop.run(left())


def data(text: str) -> list[Any]:
    """The JSON of a stream's events."""
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: "))
    return [json.loads(line) for line in lines if line != "[DONE]"]
