"""Do the pages on stopping and metering say what the code does: each cause, each cap, each dialect, each number?"""

import re
from pathlib import Path

import pytest
import yaml

from authz.caps import Caps
from authz.routes import LIMITED_PATHS
from extproc.lifecycle import STOPPING, Cause
from sidecar.envoy_config import shipped
from tests.docs.page import rows, section

DOCS = Path(__file__).parents[2] / "docs"
CANCEL, METERING, ROUTER = ((DOCS / f"{name}.md").read_text() for name in ("cancel", "metering", "router"))

# The members of NUMBERS and DETAILS, by the name that a Router gives them.
_LUA_KEY = re.compile(r"^\s+(?:\w+ = \"\w+\",? ?|\w+ = \{[^}]+\},?)+$", re.MULTILINE)
_NAME = re.compile(r"(\w*tokens\w*) =")


def _read_of_answers() -> set[str]:
    lines = _LUA_KEY.findall(shipped("usage.lua").read_text())
    return {name for line in lines for name in _NAME.findall(line)}


def _read_of_streams() -> set[str]:
    manager = yaml.safe_load(shipped("envoy.yaml").read_text())["static_resources"]["listeners"][0]["filter_chains"][0]
    filters = manager["filters"][0]["typed_config"]["http_filters"]
    [reader] = [each for each in filters if each["name"] == "envoy.filters.http.sse_to_metadata"]
    rules = reader["typed_config"]["response_rules"]["content_parser"]["typed_config"]["rules"]
    keys = {selector["key"] for each in rules for selector in each["rule"]["selectors"]}
    return keys - {"usage", "message", "response"}


def test_streams_and_answers_are_read_for_the_same_numbers() -> None:
    assert _read_of_answers() == _read_of_streams() != set()


@pytest.mark.parametrize("name", sorted(_read_of_streams()))
def test_a_number_that_is_read_is_in_the_contract(name: str) -> None:
    assert re.search(rf"\b{name}\b", ROUTER)


def test_every_path_has_a_dialect_in_the_table() -> None:
    named = ", ".join(cells[0] for cells in rows(section(METERING, "The dialects"))[1:]).split(", ")
    words = ["chat" if path.endswith("/chat/completions") else path.rsplit("/", 1)[-1] for path in LIMITED_PATHS]
    assert sorted(named) == sorted(words)


@pytest.mark.parametrize("cause", sorted({*STOPPING, Cause.DEADLINE}))
def test_every_cause_for_which_the_gateway_stops_a_request_is_explained(cause: Cause) -> None:
    assert f"`{cause}`" in CANCEL


@pytest.mark.parametrize("cap", Caps.__struct_fields__)
def test_every_cap_is_explained(cap: str) -> None:
    assert f"| `{cap}` |" in section(CANCEL, "By the plan")
