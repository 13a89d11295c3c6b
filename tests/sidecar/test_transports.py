"""Does each process get the server that the settings name, at its own address? And can the supervisor ask it?"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from sidecar import serve, transports
from sidecar.embedded.certificates import Certificates, ensure_certificates
from sidecar.embedded.ports import free_port
from sidecar.grpc_health import Health
from sidecar.settings import Settings
from transport.address import Address, TcpAddress, UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.lean_server import LeanServer
from transport.service import Service

CLASSES = {"lean": LeanServer, "grpcio": GrpcioServer}
BOTH = pytest.mark.parametrize("transport", sorted(CLASSES))
OF_TCP = TcpAddress(host="127.0.0.1", port=9000)

SettingsWith = Callable[..., Settings]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SettingsWith:
    """Settings of two workers, whatever this machine's environment says."""
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)

    def made(**changed: object) -> Settings:
        needed = {"database_url": "postgresql://h/n", "redis_url": "redis://h", "key_pepper": "p" * 32}
        return Settings.model_validate({**needed, "socket_dir": tmp_path, "socket_mode": "0660", **changed})

    return made


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path / "tls")


@pytest.fixture
def free_tcp() -> TcpAddress:
    return TcpAddress(host="127.0.0.1", port=free_port())


def _tls(certificates: Certificates) -> dict[str, Path]:
    return {
        "listen_certificate": certificates.server,
        "listen_key": certificates.key,
        "listen_client_ca": certificates.client_ca,
    }


def _health() -> Service:
    return Health([]).service()


@BOTH
async def test_worker_and_recorder_get_the_server_that_is_set(settings: SettingsWith, transport: str) -> None:
    wanted = settings(transport=transport)
    made = [
        transports.worker(wanted, 0, [], _health(), lambda _: None),
        transports.recorder(wanted, [_health()], lambda _: None),
    ]
    assert [type(server) for server in made] == [CLASSES[transport]] * 2


def _addresses(settings: Settings) -> list[Address]:
    workers = [transports.worker_address(settings, index) for index in range(settings.workers)]
    return [*workers, transports.recorder_address(settings)]


@BOTH
def test_each_process_has_its_own_unix_socket(settings: SettingsWith, tmp_path: Path, transport: str) -> None:
    wanted = settings(transport=transport)
    names = ("worker-0.sock", "worker-1.sock", "recorder.sock")
    assert _addresses(wanted) == [UnixAddress(path=tmp_path / name, mode=0o660) for name in names]
    assert [transports.probe_address(wanted, index) for index in range(2)] == _addresses(wanted)[:2]


@BOTH
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_process_has_its_own_port(settings: SettingsWith, host: str, transport: str) -> None:
    wanted = settings(transport=transport, listen=TcpAddress(host=host, port=9000), workers=3)
    assert _addresses(wanted) == [TcpAddress(host=host, port=port) for port in (9000, 9001, 9002, 9003)]
    assert [transports.probe_address(wanted, index) for index in range(3)] == _addresses(wanted)[:3]


def test_over_tls_the_supervisor_asks_at_a_unix_socket(
    settings: SettingsWith, tmp_path: Path, certificates: Certificates
) -> None:
    wanted = settings(transport="grpcio", listen=OF_TCP, **_tls(certificates))
    assert transports.worker_address(wanted, 1) == TcpAddress(host="127.0.0.1", port=9001)
    assert transports.probe_address(wanted, 1) == UnixAddress(path=tmp_path / "worker-1.sock", mode=0o660)


@pytest.mark.parametrize("way", ["lean", "lean-tcp", "grpcio", "grpcio-tcp", "grpcio-tls"])
async def test_the_supervisor_knows_whether_a_worker_serves(
    settings: SettingsWith, certificates: Certificates, free_tcp: TcpAddress, *, way: str
) -> None:
    transport, _, kind = way.partition("-")
    wanted = settings(
        transport=transport, listen=free_tcp if kind else None, **(_tls(certificates) if kind == "tls" else {})
    )
    health, errors = Health([]), list[Exception]()
    probed = transports.probe_address(wanted, 0)
    assert not await serve._worker_serves(probed)
    server = transports.worker(wanted, 0, [], health.service(), errors.append)
    await server.start()
    try:
        assert await serve._worker_serves(probed)
        health.stop_serving()
        assert not await serve._worker_serves(probed)
    finally:
        await server.stop(0)
    assert not await serve._worker_serves(probed)
    assert errors == []


async def test_the_probe_goes_past_a_proxy_that_the_environment_names(
    settings: SettingsWith, free_tcp: TcpAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard service, which is not there
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    wanted = settings(listen=free_tcp)
    server = transports.worker(wanted, 0, [], _health(), lambda _: None)
    await server.start()
    try:
        assert await serve._worker_serves(transports.probe_address(wanted, 0))
    finally:
        await server.stop(0)


async def test_beside_tls_the_unix_socket_tells_health_and_nothing_else(
    settings: SettingsWith, certificates: Certificates, free_tcp: TcpAddress
) -> None:
    async def reached(request: bytes) -> bytes:
        return request

    wanted = settings(transport="grpcio", listen=free_tcp, **_tls(certificates))
    admitting = Service(name="test.Admits", unary={"Admit": reached}, streams={})
    server = transports.worker(wanted, 0, [admitting], _health(), lambda _: None)
    await server.start()
    try:
        async with asyncio.timeout(30), grpc.aio.insecure_channel(str(transports.probe_address(wanted, 0))) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary("/test.Admits/Admit")(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(0)
