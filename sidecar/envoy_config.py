"""How does the shipped Envoy configuration become one for this machine? Only addresses, paths and numbers are replaced.

Without a CA of clients, what asks them for certificates goes as well.

The file is found beside this package in a wheel, and in the project's `envoy/` folder in a checkout.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sidecar.origins import require_origin
from sidecar.sockets import control_socket, recorder_socket, worker_socket

_HEADROOM_BYTES = 65_536
# A name, an IPv4 address, or an IPv6 address in brackets.
_HOST_AND_PORT = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
_MAX_PORT = 65_535
_OF_CLIENT_CERTIFICATES = (
    "require_client_certificate",
    "disable_stateless_session_resumption",
    "disable_stateful_session_resumption",
)
_CORS = "envoy.filters.http.cors"
_BUFFER = "envoy.filters.http.buffer"
_HOLD_HEADERS = "gateway.hold_headers"
_LUA = {"envoy.filters.http.lua": "meter.lua", "gateway.usage": "usage.lua"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyAddresses:
    """Where things are on the machine that runs Envoy. `router` is HOST:PORT."""

    port: int
    address: str
    tls_dir: Path
    socket_dir: Path
    workers: int
    router: str
    admin_socket: Path
    max_body_bytes: int
    client_ca: Path | None = None
    """Who vouches for client certificates; None: clients are not asked for one."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may call the gateway, such as `https://app.example`."""


def shipped(name: str) -> Path:
    """The path of a file of `envoy/`."""
    here = Path(__file__).parent
    installed = here / "shipped" / name
    return installed if installed.exists() else here.parent / "envoy" / name


def render(addresses: EnvoyAddresses) -> str:
    """The configuration as YAML. Raises ValueError when `router` is not HOST:PORT or an origin is none."""
    config = yaml.safe_load(shipped("envoy.yaml").read_text())
    config["admin"]["address"]["pipe"]["path"] = str(addresses.admin_socket)
    listener = config["static_resources"]["listeners"][0]
    listener["address"]["socket_address"] = {"address": addresses.address, "port_value": addresses.port}
    _place_certificates(listener, addresses)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    _place_filters(manager, addresses.max_body_bytes)
    _place_origins(manager, addresses.cors_origins)
    for cluster in config["static_resources"]["clusters"]:
        groups = cluster["load_assignment"]["endpoints"]
        for group, places in zip(groups, _places(cluster["name"], addresses), strict=True):
            group["lb_endpoints"] = [{"endpoint": {"address": address}} for address in places]
    return str(yaml.safe_dump(config, sort_keys=False, width=120))


def _place_certificates(listener: Any, addresses: EnvoyAddresses) -> None:
    tls = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    common = tls["common_tls_context"]
    certificate = common["tls_certificates"][0]
    certificate["certificate_chain"]["filename"] = str(addresses.tls_dir / "server.pem")
    certificate["private_key"]["filename"] = str(addresses.tls_dir / "server.key")
    if addresses.client_ca is None:
        del common["validation_context"]
        for setting in _OF_CLIENT_CERTIFICATES:
            del tls[setting]
    else:
        common["validation_context"]["trusted_ca"]["filename"] = str(addresses.client_ca)


def _place_filters(manager: Any, max_body_bytes: int) -> None:
    by_name = {http_filter["name"]: http_filter["typed_config"] for http_filter in manager["http_filters"]}
    by_name[_BUFFER]["max_request_bytes"] = max_body_bytes
    by_name[_HOLD_HEADERS]["max_request_bytes"] = max_body_bytes + _HEADROOM_BYTES
    # Whoever runs Envoy need not have this package.
    for name, script in _LUA.items():
        by_name[name]["default_source_code"] = {"inline_string": shipped(script).read_text()}


def _place_origins(manager: Any, origins: tuple[str, ...]) -> None:
    policy = manager["route_config"]["virtual_hosts"][0]["typed_per_filter_config"][_CORS]
    policy["allow_origin_string_match"] = [{"exact": require_origin(origin)} for origin in origins]


def _places(cluster: str, addresses: EnvoyAddresses) -> list[list[dict[str, Any]]]:
    """The addresses of a cluster, by priority."""
    workers = [_pipe(worker_socket(addresses.socket_dir, index)) for index in range(addresses.workers)]
    match cluster:
        case "router":
            return [[_router(addresses.router)]]
        case "control":
            return [[_pipe(control_socket(addresses.socket_dir))]]
        case "sidecar":
            return [workers]
        case "access_log":
            return [[_pipe(recorder_socket(addresses.socket_dir))], workers]
        case _:
            raise ValueError(f"the shipped configuration has a cluster that is not known: {cluster}")


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path)}}


def _router(text: str) -> dict[str, Any]:
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not 1 <= int(match["port"]) <= _MAX_PORT:
        raise ValueError(f"the router's address must be HOST:PORT, not {text!r}")
    return {"socket_address": {"address": match["host"].strip("[]"), "port_value": int(match["port"])}}
