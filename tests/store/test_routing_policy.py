"""Routing policies: what is valid comes out the same, in one line of ASCII; what is not names its field."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.field_error import FieldError
from store.routing_policy import FIELD, MAX_BYTES, MAX_COST_USD, canonical_text, parse, stored_text

TENANT = "ten_a"
FULL = {
    "tenantId": TENANT,
    "allowedProviders": ["openai", "local"],
    "deniedProviders": ["other"],
    "preferredProvider": "local",
    "maxCostPerRequestUsd": 0.05,
    "defaultStrategy": "pinned",
}

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-", min_size=1, max_size=12)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    providers = draw(st.lists(names, unique=True, max_size=12))
    cut = draw(st.integers(0, len(providers)))
    allowed, denied = providers[:cut], providers[cut:]
    policy: dict[str, Any] = {}
    if draw(st.booleans()):
        policy["tenantId"] = TENANT
    if allowed:
        policy["allowedProviders"] = allowed
        policy["preferredProvider"] = draw(st.sampled_from(allowed))
    if denied:
        policy["deniedProviders"] = denied
    if draw(st.booleans()):
        policy["maxCostPerRequestUsd"] = draw(st.floats(0, MAX_COST_USD) | st.integers(0, MAX_COST_USD))
    strategies = ["cheapest", "quality", *(["pinned"] if allowed else [])]
    if draw(st.booleans()):
        policy["defaultStrategy"] = draw(st.sampled_from(strategies))
    return policy


def checked(policy: object) -> str:
    return canonical_text(json.dumps(policy), tenant_id=TENANT)


def outcome(asked: object) -> str:
    try:
        return checked(asked)
    except FieldError as error:
        return str(error)


def fault(text: str) -> FieldError:
    with pytest.raises(FieldError) as raised:
        canonical_text(text, tenant_id=TENANT)
    assert str(raised.value).isprintable()
    return raised.value


@given(policies())
def test_what_is_valid_comes_out_the_same(policy: dict[str, Any]) -> None:
    text = checked(policy)
    assert json.loads(text) == {"tenantId": TENANT, **policy}
    assert canonical_text(text, tenant_id=TENANT) == text
    # Postgres keeps the numbers and the texts, but neither order nor spaces.
    assert stored_text(json.dumps(dict(reversed(json.loads(text).items())))) == text


@given(policies())
def test_it_fits_into_a_header(policy: dict[str, Any]) -> None:
    text = checked(policy)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= MAX_BYTES


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)
       | st.dictionaries(st.sampled_from(list(FULL)) | st.text(), inner), max_leaves=8))  # fmt: skip
def test_whatever_is_asked_it_is_refused_or_fits(asked: object) -> None:
    text = outcome(asked)
    assert text.startswith((FIELD, '{"tenantId":"ten_a"'))
    assert text.isprintable()


@pytest.mark.parametrize(
    ("given", "field", "word"),
    [
        ({"tenantId": "ten_b"}, "tenantId", TENANT),
        ({"tenantId": None}, "tenantId", TENANT),
        ({"tenantid": TENANT}, "tenantid", "tenantId"),
        ({"allowedProviders": "openai"}, "allowedProviders", "list"),
        ({"allowedProviders": None}, "allowedProviders", "list"),
        ({"allowedProviders": ["a", 1]}, "allowedProviders[1]", "provider"),
        ({"allowedProviders": ["a", "b", "a"]}, "allowedProviders[2]", "already"),
        ({"allowedProviders": [f"p{n}" for n in range(101)]}, "allowedProviders", "100"),
        ({"deniedProviders": ["Open AI"]}, "deniedProviders[0]", "a-z"),
        ({"deniedProviders": ["a\n"]}, "deniedProviders[0]", "a-z"),
        ({"deniedProviders": ["ä"]}, "deniedProviders[0]", "a-z"),
        ({"deniedProviders": ["x" * 65]}, "deniedProviders[0]", "64"),
        ({"preferredProvider": ""}, "preferredProvider", "1 to 64"),
        ({"preferredProvider": "a\r\nx-tenant-id: b"}, "preferredProvider", "a-z"),
        ({"preferredProvider": "a", "deniedProviders": ["a"]}, "preferredProvider", "denied"),
        ({"preferredProvider": "a", "allowedProviders": ["b"]}, "preferredProvider", "not among"),
        (
            {"preferredProvider": "a", "allowedProviders": ["a"], "deniedProviders": ["a"]},
            "preferredProvider",
            "denied",
        ),
        ({"defaultStrategy": "pinned"}, "preferredProvider", "pinned"),
        ({"defaultStrategy": "fastest"}, "defaultStrategy", "cheapest, quality, pinned"),
        ({"maxCostPerRequestUsd": True}, "maxCostPerRequestUsd", "number"),
        ({"maxCostPerRequestUsd": "1"}, "maxCostPerRequestUsd", "number"),
        ({"maxCostPerRequestUsd": -0.01}, "maxCostPerRequestUsd", "from 0"),
        ({"maxCostPerRequestUsd": MAX_COST_USD + 1}, "maxCostPerRequestUsd", "1,000,000"),
        ({"maxCostPerRequestUsd": float("nan")}, "maxCostPerRequestUsd", "number"),
        ({"maxCostPerRequestUsd": float("inf")}, "maxCostPerRequestUsd", "number"),
    ],
)
def test_what_is_wrong_names_its_field(given: dict[str, Any], field: str, word: str) -> None:
    error = fault(json.dumps(given))
    assert error.field == f"{FIELD}.{field}"
    assert word in error.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"a":1} x',
        "[" * 60_000,
        '{"maxCostPerRequestUsd":' + "9" * 5000 + "}",
        '{"\\ud800":1}',
        '{"a\\nb":1}',
        " " * 70_000 + "{}",
        json.dumps({"deniedProviders": [f"{n:064}" for n in range(100)]}),
    ],
    ids=["empty", "list", "null", "open", "more", "deep", "digits", "surrogate", "line", "long", "large"],
)
def test_what_is_no_policy_at_all(text: str) -> None:
    assert fault(text).field == FIELD


def test_a_field_that_is_there_twice_is_refused() -> None:
    error = fault('{"deniedProviders":["a"],"deniedProviders":[]}')
    assert error.field == f"{FIELD}.deniedProviders"


def test_an_empty_allow_list_allows_all_and_deny_beats_allow() -> None:
    assert parse("{}", tenant_id=TENANT).allows("a")
    both = parse('{"allowedProviders":["a","b"],"deniedProviders":["b"]}', tenant_id=TENANT)
    assert [both.allows(name) for name in "abc"] == [True, False, False]


def test_the_order_is_the_schemas() -> None:
    assert checked(dict(reversed(FULL.items()))) == json.dumps(FULL, separators=(",", ":"))


def test_what_was_written_past_us_stays_as_it_is() -> None:
    assert stored_text('{"of": "old", "x": "ä"}') == '{"of":"old","x":"\\u00e4"}'
