"""What stands in the shipped Envoy file? Its parts, for the tests that hold the code against it."""

from collections.abc import Iterator
from typing import Any

import yaml

from sidecar.envoy_config import shipped

YAML = shipped("envoy.yaml").read_text()
LUA = shipped("meter.lua").read_text()
USAGE_LUA = shipped("usage.lua").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(YAML)
MANAGER: dict[str, Any] = CONFIG["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
FILTERS: dict[str, Any] = {entry["name"]: entry["typed_config"] for entry in MANAGER["http_filters"]}
HOST: dict[str, Any] = MANAGER["route_config"]["virtual_hosts"][0]
ROUTES: list[dict[str, Any]] = HOST["routes"]
CORS: dict[str, Any] = HOST["typed_per_filter_config"]["envoy.filters.http.cors"]
MAPPERS: list[dict[str, Any]] = MANAGER["local_reply_config"]["mappers"]


def walk(tree: Any) -> Iterator[Any]:
    """Every node of a tree."""
    yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from walk(value)
