"""What is Envoy without us? The shipped configuration, as it is rendered, without what calls the sidecar.

Derived, so that listener, TLS, connection manager and Router cluster stay the same as in the measured gateway.
"""

from typing import Any

import yaml

_ROUTER = "envoy.filters.http.router"


def without_gateway(rendered: str) -> str:
    """The rendered configuration with the router filter only, and neither sidecar nor access log."""
    config = yaml.safe_load(rendered)
    resources = config["static_resources"]
    resources["clusters"] = [cluster for cluster in resources["clusters"] if cluster["name"] != "sidecar"]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [one for one in manager["http_filters"] if one["name"] == _ROUTER]
    del manager["access_log"], manager["access_log_options"]
    for place in (*manager["route_config"]["virtual_hosts"], *_routes(manager)):
        for ours in ("typed_per_filter_config", "response_headers_to_remove", "response_headers_to_add"):
            place.pop(ours, None)
    for cluster in resources["clusters"]:
        if cluster["name"] == "router":
            cluster.pop("typed_extension_protocol_options", None)
    return str(yaml.safe_dump(config, sort_keys=False, width=120))


def _routes(manager: dict[str, Any]) -> list[dict[str, Any]]:
    return [route for host in manager["route_config"]["virtual_hosts"] for route in host["routes"]]
