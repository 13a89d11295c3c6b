"""The routes of envoy.yaml must be those of the table, each through the filters that it needs."""

import re
from typing import Any

import anthropic
import openai
import pytest

import tests.wire.first_import  # noqa: F401 - before authz.wire
from authz.principal import Metering
from authz.routes import ROUTES as TABLE
from authz.routes import Limited, Route, Upstream, at
from authz.wire import METERING_HEADER, RECORDED
from tests.support.envoy_file import CORS, FILTERS, HOST, LUA, MANAGER, ROUTES

# What runs for a request that takes room and is metered, and for no other.
OF_LIMITED = {
    *("envoy.filters.http.ext_proc", "gateway.hold_headers", "envoy.filters.http.rbac", "envoy.filters.http.lua"),
    *("envoy.filters.http.sse_to_metadata", "gateway.usage"),
}


def test_the_header_that_chooses_the_metering_never_leaves_envoy() -> None:
    assert HOST["request_headers_to_remove"] == [METERING_HEADER], "on every route"
    chosen = {route["name"]: route["match"]["headers"] for route in ROUTES if "headers" in route["match"]}
    assert chosen == {
        f"inference_{value}": [{"name": METERING_HEADER, "string_match": {"exact": value}}]
        for value in (Metering.INLINE.value, RECORDED)
    }


def _paths(match: dict[str, Any]) -> set[str]:
    """The paths of a match as the table writes them, but for the names in them: the alternatives, written out."""
    if "path" in match:
        return {match["path"]}
    pattern = match["safe_regex"]["regex"].replace("[^/]+", "{}").replace("[.]", ".") if "safe_regex" in match else ""
    head, _, rest = pattern.partition("(")
    return {head + tail for tail in rest.rstrip(")").split("|")} if pattern else set()


def _route_at(path: str) -> dict[str, Any]:
    """The first route of Envoy that takes a path of a request without x-gateway-metering."""
    for route in ROUTES:
        match = route["match"]
        exact = re.escape(match["path"]) if "path" in match else f"{re.escape(match.get('prefix', ''))}.*"
        pattern = match["safe_regex"]["regex"] if "safe_regex" in match else exact
        if "headers" not in match and re.fullmatch(pattern, path):
            return route
    raise AssertionError(path)


def _upstream(route: dict[str, Any]) -> Upstream:
    return Upstream(route["route"]["cluster"]) if "route" in route else Upstream.ENVOY


def _off(route: dict[str, Any]) -> set[str]:
    """The filters that a route turns off. An rbac without rules lets everybody pass."""
    settings = route.get("typed_per_filter_config", {})
    return {
        name
        for name, setting in settings.items()
        if setting.get("disabled") or (setting["@type"].endswith(".RBACPerRoute") and "rbac" not in setting)
    }


def test_the_paths_of_envoy_are_those_of_the_table() -> None:
    known = [route for route in ROUTES if route["name"] != "unknown"]
    paths = {re.sub("{[^}]+}", "{}", route.path) for route in TABLE}
    assert {path for route in known for path in _paths(route["match"])} == paths
    assert ROUTES[-1]["match"] == {"prefix": "/"}
    assert ROUTES[-1]["direct_response"] == {"status": 404}


@pytest.mark.parametrize("route", TABLE, ids=[f"{route.method} {route.path}" for route in TABLE])
def test_a_path_goes_where_the_table_says_through_the_filters_that_its_limits_need(route: Route) -> None:
    found = _route_at(re.sub("{[^}]+}", "one", route.path))
    assert _upstream(found) is route.upstream
    if found["name"] == "control_socket":
        # What has no end of a body must not be held.
        assert _off(found) == OF_LIMITED | {"envoy.filters.http.buffer"}
    elif route.upstream is not Upstream.ENVOY:
        assert _off(found) == (set() if route.limited is Limited.ALL else OF_LIMITED)
        limit = found.get("typed_per_filter_config", {}).get("envoy.filters.http.buffer")
        small = {"max_request_bytes": 65_536} if route.upstream is Upstream.CONTROL else None
        assert (limit and limit["buffer"]) == small


@pytest.mark.parametrize(
    "path", ["/", "/v1/infer/", "/v1/models/m", "/v1/sessions/", "/v1/sessions/a/b", "/v1/messages/x", "/v1xinfer"]
)
def test_what_is_not_in_the_table_goes_nowhere(path: str) -> None:
    assert at(path) == ()
    assert _route_at(path)["name"] == "unknown"


@pytest.mark.parametrize(("value", "changed"), [("inline", {"envoy.filters.http.lua"}), ("recorded", set())])
def test_the_other_routes_of_inference_take_the_same_paths_and_change_ext_proc_and_lua_alone(
    value: str, changed: set[str]
) -> None:
    [other] = [route for route in ROUTES if route["name"] == f"inference_{value}"]
    native = _route_at("/v1/infer")
    assert other["match"]["safe_regex"] == native["match"]["safe_regex"]
    assert other["route"] == native["route"]
    assert set(other["typed_per_filter_config"]) == {"envoy.filters.http.ext_proc", *changed}
    assert _off(other) == set()
    context = other["typed_per_filter_config"].get("envoy.filters.http.lua", {}).get("filter_context")
    assert context == ({"metering": value} if changed else None)
    assert 'get("metering") == "inline"' in LUA


@pytest.mark.parametrize(
    "path", ["/v1/requests/one/events", "/ws/inference/one", "/v1/usage", "/v1/requests", "/v1/infer", "/v1/models"]
)
def test_what_takes_its_time_ends_when_it_is_silent_and_not_before(path: str) -> None:
    action = _route_at(path)["route"]
    assert (action["timeout"], action["idle_timeout"]) == ("0s", MANAGER["stream_idle_timeout"])


def test_one_path_may_become_a_web_socket() -> None:
    upgrading = {
        route["name"]: route["route"]["upgrade_configs"] for route in ROUTES if "upgrade_configs" in str(route)
    }
    assert upgrading == {"control_socket": [{"upgrade_type": "websocket"}]}
    assert "upgrade_configs" not in MANAGER


def test_only_health_passes_without_check() -> None:
    assert [route["name"] for route in ROUTES if "envoy.filters.http.ext_authz" in _off(route)] == ["health"]
    # Where rbac does not wait for Process, nothing else does: Check alone lets in, and it fails closed.
    assert FILTERS["envoy.filters.http.ext_authz"]["failure_mode_allow"] is False
    for route in ROUTES:
        assert "envoy.filters.http.rbac" not in _off(route) or "envoy.filters.http.ext_proc" in _off(route)


def test_a_browser_may_send_what_the_sdks_send() -> None:
    sent: set[str] = set()
    for client in (openai.OpenAI(api_key="k"), anthropic.Anthropic(api_key="k")):
        sent |= {name.lower() for name, value in client.default_headers.items() if isinstance(value, str)}
    # The browser's own, or allowed without being named (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
    assert sent - {"accept", "user-agent"} <= _names(CORS["allow_headers"])
    assert {"authorization", "x-api-key", "api-key", "x-csrf-token", "idempotency-key"} <= _names(CORS["allow_headers"])


def test_no_origin_is_shipped_and_every_method_of_the_table_may_be_used() -> None:
    assert CORS["allow_origin_string_match"] == []
    methods = {method.strip() for method in CORS["allow_methods"].split(",")}
    assert methods == {route.method for route in TABLE} | {"OPTIONS"}
    assert {"x-request-id", "retry-after", "retry-after-ms"} <= _names(CORS["expose_headers"])


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",")}
