"""What Envoy says by itself must read like our own refusals, in each dialect."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tests.wire.first_import  # noqa: F401 - before extproc.wire
from authz import error_body
from authz.refusal import Reason, Refusal
from authz.routes import ROUTES, Dialect
from extproc import wire
from sidecar.envoy_config import shipped
from tests.support.envoy_file import MAPPERS, walk

FORMATS: list[dict[str, Any]] = [mapper["body_format_override"]["json_format"] for mapper in MAPPERS]
CODES = [body["error"]["code"] for body in FORMATS]
DIALECTS = [Dialect.ANTHROPIC_MESSAGES if "type" in body else Dialect.PLAIN for body in FORMATS]
# What Envoy writes in their place.
REQUEST_ID, NOW = "%REQ(X-REQUEST-ID)%", "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%"


def _expressions(mapper: dict[str, Any]) -> list[str]:
    return [node["expression"] for node in walk(mapper["filter"]) if isinstance(node, dict) and "expression" in node]


@pytest.mark.parametrize(
    ("mapper", "dialect"), list(zip(MAPPERS, DIALECTS, strict=True)), ids=map("{}-{}".format, CODES, DIALECTS)
)
def test_a_local_reply_is_one_of_our_refusals(mapper: dict[str, Any], dialect: Dialect) -> None:
    body = mapper["body_format_override"]["json_format"]
    reason = Reason[body["error"]["code"].upper()]
    ours = json.loads(error_body.render(Refusal(reason=reason), dialect=dialect, request_id=REQUEST_ID, now=0))
    ours["error"]["timestamp"] = NOW
    assert (mapper["status_code"], body) == (reason.status, ours)
    assert list(body["error"]) == list(ours["error"])
    added = {entry["header"]["key"] for entry in mapper.get("headers_to_add", [])}
    assert ("retry-after" in added) is (reason.status == 503)
    assert mapper["body_format_override"]["content_type"] == "application/json"


def test_each_local_reply_is_said_in_both_dialects_first_in_that_of_the_path() -> None:
    plain = [number for number, dialect in enumerate(DIALECTS) if dialect is Dialect.PLAIN]
    on_path = "request.url_path.startsWith('/v1/messages')"
    alone = []
    for number in plain:
        expressions = _expressions(MAPPERS[number])
        if _expressions(MAPPERS[number - 1]) == [on_path, *expressions]:
            assert (CODES[number - 1], DIALECTS[number - 1]) == (CODES[number], Dialect.ANTHROPIC_MESSAGES)
        else:
            alone.append(expressions)
    assert len(MAPPERS) == 2 * len(plain) - len(alone)
    # Control serves none of Anthropic's paths.
    [[of_control]] = alone
    assert of_control.startswith("xds.cluster_name == 'control'")
    assert {route.path for route in ROUTES if route.dialect is Dialect.ANTHROPIC_MESSAGES} == {"/v1/messages"}


def test_each_reason_that_envoy_says_is_said() -> None:
    source = (Path(shipped("envoy.yaml")).parent.parent / "authz" / "refusal.py").read_text()
    of_envoy = set(re.findall(r"^    ([A-Z_]+) = _Row", source.partition("# Said by Envoy itself")[2], re.MULTILINE))
    assert of_envoy
    assert {code.upper() for code in CODES} >= of_envoy


def test_no_mapper_takes_our_own_refusals() -> None:
    # They are written before Envoy's; their details begin so.
    for expression in [expression for mapper in MAPPERS for expression in _expressions(mapper)]:
        assert f"startsWith('{wire.DETAILS_PREFIX}')" not in expression.replace(
            f"!response.code_details.startsWith('{wire.DETAILS_PREFIX}')", ""
        )
