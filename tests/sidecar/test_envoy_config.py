"""The rendered configuration is the shipped one, but for addresses, paths and numbers; and Envoy takes it."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.embedded.certificates import ensure_certificates
from sidecar.embedded.envoy_server import envoy_binary
from sidecar.envoy_config import EnvoyAddresses, render, shipped

ADDRESSES = EnvoyAddresses(
    port=9443,
    address="127.0.0.9",
    tls_dir=Path("/here/tls"),
    socket_dir=Path("/here/gw"),
    workers=3,
    router="router.example:8123",
    admin_socket=Path("/here/admin.sock"),
    max_body_bytes=2_000_000,
    client_ca=Path("/here/clients.pem"),
    cors_origins=("https://app.example", "http://localhost:3000"),
)
HTTP = "static_resources.listeners.0.filter_chains.0.filters.0.typed_config"
# One file is easier to bring to a machine than three.
LUA_CODE = {
    f"{HTTP}.http_filters.{name}.typed_config.default_source_code": script
    for name, script in (("envoy.filters.http.lua", "meter.lua"), ("gateway.usage", "usage.lua"))
}
TLS = "static_resources.listeners.0.filter_chains.0.transport_socket.typed_config"
PAIR = f"{TLS}.common_tls_context.tls_certificates.0"
CLIENT_CA = f"{TLS}.common_tls_context.validation_context.trusted_ca.filename"
ORIGINS = (
    f"{HTTP}.route_config.virtual_hosts.0.typed_per_filter_config.envoy.filters.http.cors.allow_origin_string_match"
)
ASKED_OF_CLIENTS = {
    CLIENT_CA,
    f"{TLS}.require_client_certificate",
    f"{TLS}.disable_stateless_session_resumption",
    f"{TLS}.disable_stateful_session_resumption",
}
CHANGED = {
    "admin.address.pipe.path": "/here/admin.sock",
    "static_resources.listeners.0.address.socket_address.address": "127.0.0.9",
    "static_resources.listeners.0.address.socket_address.port_value": 9443,
    f"{PAIR}.certificate_chain.filename": "/here/tls/server.pem",
    f"{PAIR}.private_key.filename": "/here/tls/server.key",
    CLIENT_CA: "/here/clients.pem",
    f"{ORIGINS}.0.exact": "https://app.example",
    f"{ORIGINS}.1.exact": "http://localhost:3000",
    f"{HTTP}.http_filters.envoy.filters.http.buffer.typed_config.max_request_bytes": 2_000_000,
    f"{HTTP}.http_filters.gateway.hold_headers.typed_config.max_request_bytes": 2_065_536,
    **{f"{code}.inline_string": shipped(script).read_text() for code, script in LUA_CODE.items()},
}


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a tree, with its place. What has a name is placed by it, not by its number."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{place}.{key}")
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            is_filter = place.endswith("http_filters")
            yield from _leaves(value, f"{place}.{value['name'] if is_filter else number}")
    else:
        yield place.removeprefix("."), tree


def _without_clusters(config: Any) -> dict[str, Any]:
    return {place: value for place, value in _leaves(config) if ".lb_endpoints." not in place}


def _endpoints(config: Any) -> dict[str, list[list[Any]]]:
    return {
        cluster["name"]: [
            [endpoint["endpoint"]["address"] for endpoint in group["lb_endpoints"]]
            for group in cluster["load_assignment"]["endpoints"]
        ]
        for cluster in config["static_resources"]["clusters"]
    }


def test_only_addresses_paths_and_numbers_are_replaced() -> None:
    before = _without_clusters(yaml.safe_load(shipped("envoy.yaml").read_text()))
    after = _without_clusters(yaml.safe_load(render(ADDRESSES)))
    inlined = {f"{code}.filename": f"{code}.inline_string" for code in LUA_CODE}
    in_place = [inlined.get(place, place) for place in before]
    assert in_place == [place for place in after if ORIGINS not in place], (
        "in the same order: filters run as they stand"
    )
    assert {place: after[place] for place in after if after[place] != before.get(place)} == CHANGED


@pytest.mark.parametrize("workers", [1, 2, 64])
def test_each_worker_has_its_own_endpoint_and_stands_in_for_the_recorder(workers: int) -> None:
    found = _endpoints(yaml.safe_load(render(replace(ADDRESSES, workers=workers))))
    of_workers = [{"pipe": {"path": f"/here/gw/worker-{number}.sock"}} for number in range(workers)]
    assert found == {
        "router": [[{"socket_address": {"address": "router.example", "port_value": 8123}}]],
        "control": [[{"pipe": {"path": "/here/gw/control.sock"}}]],
        "sidecar": [of_workers],
        "access_log": [[{"pipe": {"path": "/here/gw/recorder.sock"}}], of_workers],
    }


def test_the_shipped_file_renders_to_itself_with_its_own_addresses() -> None:
    of_the_file = EnvoyAddresses(
        port=8443,
        address="0.0.0.0",  # noqa: S104 - what the file says
        tls_dir=Path("/etc/inference-gateway/tls"),
        socket_dir=Path("/run/inference-gateway"),
        workers=2,
        router="router:8000",
        admin_socket=Path("/run/inference-gateway/envoy-admin.sock"),
        max_body_bytes=4 * 1024 * 1024,
        client_ca=Path("/etc/inference-gateway/tls/client-ca.pem"),
    )
    again, original = yaml.safe_load(render(of_the_file)), yaml.safe_load(shipped("envoy.yaml").read_text())
    differing = {
        place for (place, one), (_, other) in zip(_leaves(again), _leaves(original), strict=True) if one != other
    }
    assert differing == {f"{code}.inline_string" for code in LUA_CODE}


@pytest.mark.parametrize(
    ("router", "host", "port"),
    [
        ("router:8000", "router", 8000),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:8000", "::1", 8000),
        ("a.b.example:65535", "a.b.example", 65535),
    ],
)
def test_a_router_is_host_and_port(router: str, host: str, port: int) -> None:
    found = _endpoints(yaml.safe_load(render(replace(ADDRESSES, router=router))))
    assert found["router"] == [[{"socket_address": {"address": host, "port_value": port}}]]


@pytest.mark.parametrize(
    "router",
    [
        *("", "router", ":8000", "router:", "router:http", "router:-1", "router: 8000", "router:8000/v1"),
        *("http://router:8000", "router:0", "router:65536", "::1:8000", "user@router:8000", "two words:80"),
    ],
)
def test_a_router_that_is_not_host_and_port_is_refused(router: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        render(replace(ADDRESSES, router=router))


def test_without_a_ca_of_clients_nobody_is_asked_for_a_certificate() -> None:
    asking, silent = (yaml.safe_load(render(replace(ADDRESSES, client_ca=ca))) for ca in (Path("/ca.pem"), None))
    assert {place for place, _ in _leaves(asking)} - {place for place, _ in _leaves(silent)} == ASKED_OF_CLIENTS


@pytest.mark.parametrize("origin", ["*", "https://app.example/", "app.example", "https://*.example"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        render(replace(ADDRESSES, cors_origins=("https://app.example", origin)))


@pytest.mark.parametrize("asks", [True, False], ids=["client-ca", "no-client-ca"])
@pytest.mark.parametrize("router", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000"])
def test_envoy_takes_the_rendered_file(tmp_path: Path, router: str, *, asks: bool) -> None:
    made = ensure_certificates(tmp_path / "tls")
    config = tmp_path / "envoy.yaml"
    config.write_text(
        render(
            replace(
                ADDRESSES,
                tls_dir=tmp_path / "tls",
                admin_socket=tmp_path / "admin.sock",
                router=router,
                client_ca=made.client_ca if asks else None,
            )
        )
    )
    validated = subprocess.run(
        [str(envoy_binary()), "--mode", "validate", "-c", str(config), "--log-level", "warn"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert validated.returncode == 0, validated.stderr
    for word in ("deprecated", "Unknown field", "[error]"):
        assert word not in validated.stderr
