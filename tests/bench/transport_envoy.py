"""Which Envoy measures a gRPC server? One with a listener for each server and kind of call, and nothing behind them.

Plain HTTP on loopback. Every request is answered by Envoy itself, so that what remains is Envoy, the call and the
server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.connection import HOST

ANSWER = '{"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": "A little."}}]}\n'
_TYPES = "type.googleapis.com/envoy.extensions"
_FILTERS = f"{_TYPES}.filters.http"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Beyond what a busy machine makes of an answer: a call that is given up is an error of this benchmark.
_PATIENCE = "5s"
# Envoy closes a connection of HTTP/1.1 on which it has answered before the request was whole.
_WHOLE_REQUEST = {
    "name": "envoy.filters.http.buffer",
    "typed_config": {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": 65_536},
}
_ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_FILTERS}.router.v3.Router"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What Envoy asks for each request."""

    title: str
    check: bool = False
    exchange: bool = False
    """Four pairs of messages: headers and whole body of the request, then of the answer."""
    unique: bool = False
    """Check carries a metadata value that no other call has, as with tracing: no table of headers can know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where `calls` go to the server of this name; to none when it is None."""

    name: str
    port: int
    calls: Calls
    server: str | None


def rendered(listeners: Mapping[Any, Listener], sockets: Mapping[str, Path], *, admin: Path) -> str:
    """The configuration; `sockets` are those of the servers, by name."""
    config = {
        "admin": {"address": _pipe(admin)},
        "static_resources": {
            "listeners": [_listener(one) for one in listeners.values()],
            "clusters": [_cluster(name, path) for name, path in sockets.items()],
        },
    }
    return str(yaml.safe_dump(config, sort_keys=False, width=120))


def _pipe(path: Path) -> dict[str, Any]:
    return {"pipe": {"path": str(path)}}


def _listener(one: Listener) -> dict[str, Any]:
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": ANSWER}}}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": one.name,
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
        "http_filters": [*_filters(one), _WHOLE_REQUEST, _ROUTER],
    }
    return {
        "name": one.name,
        "address": {"socket_address": {"address": HOST, "port_value": one.port}},
        # The kernel would spread a few connections over Envoy's threads by chance, another way in each run.
        "connection_balance_config": {"exact_balance": {}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _filters(one: Listener) -> list[dict[str, Any]]:
    if one.server is None:
        return []
    grpc: dict[str, Any] = {"timeout": _PATIENCE, "envoy_grpc": {"cluster_name": one.server}}
    found = []
    if one.calls.check:
        told = [{"key": "traceparent", "value": "%REQ(traceparent)%"}] if one.calls.unique else []
        check = {
            "@type": f"{_FILTERS}.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "grpc_service": {**grpc, "initial_metadata": told},
        }
        found.append({"name": "envoy.filters.http.ext_authz", "typed_config": check})
    if one.calls.exchange:
        found.append({"name": "envoy.filters.http.ext_proc", "typed_config": _exchange(grpc)})
    return found


def _exchange(grpc: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": f"{_FILTERS}.ext_proc.v3.ExternalProcessor",
        "grpc_service": grpc,
        "message_timeout": _PATIENCE,
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SEND",
            "response_body_mode": "BUFFERED",
            "response_trailer_mode": "SKIP",
        },
    }


def _cluster(name: str, path: Path) -> dict[str, Any]:
    """The windows and limits of the shipped configuration (envoy/envoy.yaml, `sidecar`), without its health checks."""
    http2 = {"initial_stream_window_size": 1_048_576, "initial_connection_window_size": 16_777_216}
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": http2},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _pipe(path)}}]}],
        },
    }
