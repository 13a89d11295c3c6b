"""Which limits can be set by whom, which replace which, and what was stored before they had so many sides."""

from typing import Any

import msgspec
import pytest

from quota.limit import (
    Dimension,
    Limit,
    Mode,
    OnOutage,
    Unit,
    Window,
    concurrent_requests,
    limit_name,
    requests_per_minute,
    tokens_per_day,
)
from store.field_error import FieldError
from store.limits import (
    MAX_CEILING,
    MAX_SECONDS,
    checked_limits,
    decode_limits,
    effective_limits,
    encode_limits,
    identity,
)

ORGANIZATION, TENANT, PRINCIPAL, ROUTE, MODEL = Dimension
PLAN = (requests_per_minute(1), concurrent_requests(2))


def sliding(ceiling: int = 10, **changes: Any) -> Limit:
    whole = {"unit": Unit.REQUESTS, "window": Window.SLIDING, "seconds": 60, **changes}
    name = limit_name(whole["unit"], whole["window"], whole["seconds"])
    return Limit(**{"name": name, "ceiling": ceiling, **whole})


def refusal(*limits: Limit, carrier: Dimension = TENANT) -> str:
    with pytest.raises(FieldError) as raised:
        checked_limits("limits", limits, carrier)
    assert raised.value.field == "limits"
    return raised.value.reason


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (requests_per_minute(-1), ["ceiling", "requests_per_minute"]),
        (requests_per_minute(MAX_CEILING + 1), ["ceiling"]),
        (sliding(seconds=0), ["length of its window"]),
        (sliding(seconds=MAX_SECONDS + 1), ["length of its window"]),
        (sliding(name="burst"), ["called requests_per_minute", "burst"]),
        (sliding(seconds=3600, name="requests_per_minute"), ["called requests_per_hour"]),
        (sliding(unit=Unit.CONCURRENT_REQUESTS), ["concurrent requests"]),
        (sliding(unit=Unit.COST, window=Window.LEASE), ["concurrent requests"]),
        (sliding(window=Window.CALENDAR_MONTH, burst=1), ["requests_per_month", "burst", "slides"]),
        (msgspec.structs.replace(concurrent_requests(5), burst=1), ["burst", "slides"]),
        (sliding(10, burst=11), ["burst", "1 to its ceiling, 10"]),
        (sliding(10, burst=-1), ["burst"]),
        (sliding(0, burst=1), ["burst"]),
        (sliding(2**53 // 60_000 + 1, burst=1), ["with a burst", f"{(2**53 - 1) // 60_000:,}"]),
        (sliding(per=(MODEL, MODEL)), ["twice", "model+model"]),
        (sliding(per=(TENANT, PRINCIPAL)), ["tenant+principal", "only one"]),
        (sliding(route="/v1/models"), ["/v1/models", "/v1/embeddings"]),
        (sliding(route="/v1/embeddings?x"), ["/v1/embeddings?x"]),
        (sliding(model="*-mini"), ["*-mini", "gpt-*"]),
        (sliding(priority=10), ["priority", "0 to 9"]),
        (sliding(priority=-1), ["priority"]),
    ],
    ids=str,
)
def test_limits_that_make_no_sense(limit: Limit, words: list[str]) -> None:
    reason = refusal(requests_per_minute(3), limit)
    for word in words:
        assert word in reason


@pytest.mark.parametrize(
    "limit",
    [
        requests_per_minute(0),
        sliding(MAX_CEILING),
        sliding(10, burst=10),
        sliding((2**53 - 1) // 60_000, burst=1),
        sliding(unit=Unit.COST, window=Window.CALENDAR_MONTH, seconds=0),
        sliding(per=(ORGANIZATION, MODEL), route="/v1/messages", model="gpt-*", priority=9),
        sliding(mode=Mode.SHADOW, on_outage=OnOutage.OPEN),
    ],
    ids=str,
)
def test_limits_that_can_be_set(limit: Limit) -> None:
    assert checked_limits("limits", [limit]) == (limit,)


def test_what_it_is_counted_per_is_stored_in_one_order() -> None:
    [stored] = checked_limits("limits", [sliding(per=(MODEL, ROUTE, PRINCIPAL))])
    assert stored.per == (PRINCIPAL, ROUTE, MODEL)


@pytest.mark.parametrize("wider", [ORGANIZATION, TENANT])
def test_a_principals_own_limit_is_counted_for_nobody_else(wider: Dimension) -> None:
    assert f"per {wider}" in refusal(sliding(per=(wider, MODEL)), carrier=PRINCIPAL)
    for per in ((), (ROUTE, MODEL), (PRINCIPAL, MODEL)):
        assert checked_limits("limits", [sliding(per=per)], PRINCIPAL)


@pytest.mark.parametrize("per", [(), (ORGANIZATION,), (TENANT, MODEL), (PRINCIPAL,)])
def test_an_organizations_limit_may_be_counted_for_each_below_it(per: tuple[Dimension, ...]) -> None:
    assert checked_limits("limits", [sliding(per=per)], ORGANIZATION)


@pytest.mark.parametrize(
    ("changes", "doubled"),
    [
        ({"ceiling": 11}, True),
        ({"mode": Mode.SHADOW, "priority": 3, "burst": 2}, True),
        ({"per": (TENANT,)}, True),
        ({"per": (PRINCIPAL,)}, False),
        ({"per": (MODEL,)}, False),
        ({"route": "/v1/messages"}, False),
        ({"model": "gpt-*"}, False),
        ({"seconds": 61, "name": "requests_per_61s"}, False),
    ],
    ids=str,
)
def test_two_limits_that_count_the_same_are_one_too_many(changes: dict[str, Any], *, doubled: bool) -> None:
    one, two = sliding(), msgspec.structs.replace(sliding(), **changes)
    assert (identity(one) == identity(two)) is doubled
    if doubled:
        assert "requests_per_minute" in (reason := refusal(one, two))
        assert "more than once" in reason
    else:
        assert checked_limits("limits", [one, two]) == (one, two)


@pytest.mark.parametrize(
    ("own", "effective"),
    [
        ((), {"requests_per_minute": 1, "concurrent_requests": 2}),
        ((requests_per_minute(9),), {"requests_per_minute": 9, "concurrent_requests": 2}),
        ((requests_per_minute(0),), {"requests_per_minute": 0, "concurrent_requests": 2}),
        ((tokens_per_day(5),), {"requests_per_minute": 1, "concurrent_requests": 2, "tokens_per_day": 5}),
        ((sliding(7, per=(TENANT,)),), {"requests_per_minute": 7, "concurrent_requests": 2}),
    ],
)
def test_a_tenants_own_limits_replace_the_plans_or_are_added(own: tuple[Limit, ...], effective: dict[str, int]) -> None:
    held = effective_limits(PLAN, own)
    assert {limit.name: limit.ceiling for limit in held} == effective
    assert len(held) == len(effective)


def test_a_tenants_limit_for_something_else_stands_beside_the_plans() -> None:
    own = (sliding(9, model="gpt-*"), sliding(9, per=(PRINCIPAL,)), sliding(9, route="/v1/messages"))
    assert effective_limits(PLAN, own) == (*PLAN, *own)


def test_what_was_stored_before_is_read() -> None:
    rows = (
        '[{"name": "requests_per_minute", "unit": "requests", "window": "sliding", "ceiling": 10, "seconds": 60},'
        ' {"name": "tokens_per_day", "unit": "tokens", "window": "calendar_day", "ceiling": 5, "seconds": 0}]'
    )
    assert decode_limits(rows) == (requests_per_minute(10), tokens_per_day(5))
    assert decode_limits(encode_limits(PLAN)) == PLAN
