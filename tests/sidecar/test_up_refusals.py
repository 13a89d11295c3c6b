"""Does `up` say plainly, and before anything starts, what cannot work?"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import HttpUrl

from sidecar.embedded.envoy_server import EnvoyOptions
from sidecar.embedded.ports import free_port
from sidecar.embedded.router import RouterAddress, router_address
from sidecar.process import StartError
from sidecar.settings import UpSettings
from sidecar.up import Product, up


async def no_demo(_url: str, _pepper: str, _key: str | None) -> NoReturn:
    raise AssertionError


def no_envoy(_options: EnvoyOptions) -> NoReturn:
    raise AssertionError


PRODUCT = Product(ensure_demo=no_demo, render_envoy=no_envoy, cli=("/no/such/cli",), router=("/no/such/router",))


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_a_taken_port_names_its_variable(tmp_path: Path, taken: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert await up(UpSettings(state=tmp_path, port=taken, ops_port=free_port()), PRODUCT) == 1
    assert f"port {taken} is taken by another program: end it, or set GATEWAY_PORT" in capsys.readouterr().err
    assert await up(UpSettings(state=tmp_path, port=free_port(), ops_port=taken), PRODUCT) == 1
    assert f"port {taken} is taken by another program: end it, or set GATEWAY_OPS_PORT" in capsys.readouterr().err


async def test_the_two_ports_differ_and_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert await up(UpSettings(state=tmp_path, port=port, ops_port=port), PRODUCT) == 1
    assert f"GATEWAY_OPS_PORT and GATEWAY_PORT are both {port}" in capsys.readouterr().err
    assert await up(UpSettings(state=tmp_path, port=65535), PRODUCT) == 1
    assert "port 65536 does not exist: set GATEWAY_OPS_PORT" in capsys.readouterr().err


async def test_a_child_that_cannot_start_ends_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await up(UpSettings(state=tmp_path, port=free_port(), ops_port=free_port()), PRODUCT) == 1
    assert "cannot start router: /no/such/router: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://router", RouterAddress("router", 80)),
        ("http://router:9000/", RouterAddress("router", 9000)),
        ("http://[::1]:9000", RouterAddress("::1", 9000)),
    ],
)
def test_a_router_is_a_host_and_a_port(url: str, address: RouterAddress) -> None:
    assert router_address(HttpUrl(url)) == address


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://router", "must begin with http://, not https://"),
        ("http://router/v1", "must not have a path, but has /v1"),
        ("http://me:hunter2@router", "must not hold a user name or a password"),
        ("http://router?a=b", "must not have a query"),
    ],
)
def test_any_other_router_url_is_refused(url: str, why: str) -> None:
    with pytest.raises(StartError, match=f"ROUTER_URL {why}") as refused:
        router_address(HttpUrl(url))
    assert "hunter2" not in str(refused.value)


async def test_a_bad_router_url_stops_up_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = UpSettings(state=tmp_path / "run", router_url=HttpUrl("http://router/v1"))
    assert await up(settings, PRODUCT) == 1
    assert "ROUTER_URL must not have a path" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
