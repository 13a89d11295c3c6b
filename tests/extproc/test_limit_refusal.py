"""What a refused caller is told: which limit, whose, of what, how full, and whether and when to come again."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.refusal import Reason
from extproc.limit_refusal import is_for_want_of_a_slot, refusal
from quota.applied import Target, applied
from quota.limit import Dimension, Limit, Unit, Window
from quota.reservation import Exceeded
from tests.support.values import sliding, slots, tokens_a_day

TARGET = Target(
    organization_id="org_a",
    tenant_id="ten_a",
    principal_id="key_k",
    route="/v1/infer",
    model="odd, model:with tenant:text",
    time_zone="Asia/Tokyo",
)
HEADERS = (("x-ratelimit-limit-requests", "9"),)


def _limit(unit: Unit = Unit.REQUESTS, window: Window = Window.SLIDING, **changes: Any) -> Limit:
    return msgspec.structs.replace(sliding(9, unit=unit, name="a_limit"), window=window, **changes)


def _exceeded(
    limit: Limit, *, carrier: Dimension = Dimension.TENANT, retry_after_ms: int | None = 1500, used: int = 9
) -> Exceeded:
    [held] = applied([(carrier, (limit,))], TARGET).limits
    return Exceeded(limit=held, used=used, demanded=3, retry_after_ms=retry_after_ms, standings=())


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        (_limit(Unit.REQUESTS), Reason.RATE_LIMIT_EXCEEDED),
        (_limit(Unit.TOKENS), Reason.RATE_LIMIT_EXCEEDED),
        (_limit(Unit.INPUT_TOKENS, Window.CALENDAR_HOUR), Reason.RATE_LIMIT_EXCEEDED),
        (slots(9), Reason.RATE_LIMIT_EXCEEDED),
        (_limit(Unit.REQUESTS, Window.CALENDAR_DAY), Reason.INSUFFICIENT_QUOTA),
        (_limit(Unit.OUTPUT_TOKENS, Window.CALENDAR_MONTH), Reason.INSUFFICIENT_QUOTA),
        (_limit(Unit.COST), Reason.INSUFFICIENT_QUOTA),
        (_limit(Unit.COST, Window.CALENDAR_MONTH), Reason.INSUFFICIENT_QUOTA),
    ],
)
def test_a_budget_that_is_used_up_is_told_apart_from_a_rate(limit: Limit, reason: Reason) -> None:
    found = refusal(_exceeded(limit), time_zone="UTC", headers=HEADERS)
    assert (found.reason, found.retry_after_ms) == (reason, 1500)
    budget = reason is Reason.INSUFFICIENT_QUOTA
    assert found.headers == ((*HEADERS, ("x-should-retry", "false")) if budget else HEADERS)


@pytest.mark.parametrize("limit", [_limit(), _limit(Unit.COST, Window.CALENDAR_MONTH), slots(0), tokens_a_day(9)])
def test_what_can_never_fit_is_a_mistake_of_the_request(limit: Limit) -> None:
    found = refusal(_exceeded(limit, retry_after_ms=None), time_zone="UTC", headers=HEADERS)
    assert (found.reason, found.retry_after_ms, found.headers) == (Reason.EXCEEDS_LIMIT, None, HEADERS)
    assert found.details["demanded"] == 3


@pytest.mark.parametrize(
    ("used", "message"),
    [
        (6, "The burst of 2 of the limit 'a_limit' is used up; room comes back evenly."),
        (7, "The limit 'a_limit' of 9 is exceeded."),
    ],
)
def test_whether_a_burst_or_the_ceiling_refuses_is_told(used: int, message: str) -> None:
    found = refusal(_exceeded(_limit(burst=2), used=used), time_zone="UTC")
    assert found.message == message


def test_what_can_never_fit_into_a_burst_is_told_the_burst() -> None:
    found = refusal(_exceeded(_limit(burst=2), retry_after_ms=None), time_zone="UTC")
    assert found.message == "This request alone is larger than the burst of 2 of the limit 'a_limit'."
    assert found.details["burst"] == 2


@pytest.mark.parametrize(
    ("limit", "details"),
    [
        (
            _limit(),
            {"limit": "a_limit", "unit": "requests", "ceiling": 9, "used": 9, "window": "sliding", "seconds": 60},
        ),
        (
            tokens_a_day(70, name="tokens_per_day"),
            {
                "limit": "tokens_per_day",
                "unit": "tokens",
                "ceiling": 70,
                "used": 9,
                "window": "calendar_day",
                "time_zone": "Asia/Tokyo",
            },
        ),
        (
            slots(4, name="concurrent_requests"),
            {
                "limit": "concurrent_requests",
                "unit": "concurrent_requests",
                "ceiling": 4,
                "used": 9,
                "window": "lease",
            },
        ),
    ],
)
def test_the_limit_that_refuses_is_named_with_its_numbers(limit: Limit, details: dict[str, Any]) -> None:
    assert refusal(_exceeded(limit), time_zone="Asia/Tokyo").details == {"per": "tenant", **details}


@pytest.mark.parametrize(
    ("carrier", "changes", "scope"),
    [
        (Dimension.ORGANIZATION, {}, "organization"),
        (Dimension.PRINCIPAL, {}, "principal"),
        (Dimension.TENANT, {"per": (Dimension.MODEL,)}, "tenant,model"),
        (Dimension.TENANT, {"per": (Dimension.MODEL, Dimension.PRINCIPAL)}, "principal,model"),
        (Dimension.ORGANIZATION, {"per": (Dimension.ROUTE, Dimension.TENANT)}, "tenant,route"),
        (Dimension.TENANT, {"model": "odd*"}, "tenant"),
        (Dimension.PRINCIPAL, {"route": "/v1/infer", "model": "odd*"}, "principal"),
    ],
)
def test_the_caller_is_told_for_what_it_is_counted_apart_and_not_for_whom(
    carrier: Dimension, changes: dict[str, Any], scope: str
) -> None:
    details = refusal(_exceeded(_limit(**changes), carrier=carrier), time_zone="UTC").details
    assert details["per"] == scope
    for name in ("route", "model"):
        assert details.get(name) == changes.get(name)
    assert not {"org_a", "ten_a", "key_k"} & set(map(str, details.values()))


@pytest.mark.parametrize(
    ("limit", "retry_after_ms", "wants"),
    [(slots(4), 1000, True), (slots(0), None, False), (_limit(), 5, False), (tokens_a_day(4), 5, False)],
)
def test_only_a_slot_may_come_back_in_a_moment(limit: Limit, retry_after_ms: int | None, *, wants: bool) -> None:
    assert is_for_want_of_a_slot(_exceeded(limit, retry_after_ms=retry_after_ms)) is wants


@given(
    unit=st.sampled_from(Unit),
    window=st.sampled_from(Window),
    carrier=st.sampled_from([Dimension.ORGANIZATION, Dimension.TENANT, Dimension.PRINCIPAL]),
    per=st.lists(st.sampled_from(Dimension), unique=True),
    retry_after_ms=st.none() | st.integers(0, 2**40),
)
def test_whatever_refuses_the_answer_can_be_sent(
    *, unit: Unit, window: Window, carrier: Dimension, per: list[Dimension], retry_after_ms: int | None
) -> None:
    limit = _limit(unit, window, per=tuple(per))
    found = refusal(_exceeded(limit, carrier=carrier, retry_after_ms=retry_after_ms), time_zone="UTC")
    assert found.details == msgspec.json.decode(msgspec.json.encode(found.details))
    assert (found.reason.status == 429) == (found.retry_after_ms is not None)
    assert set(per) <= {Dimension(name) for name in found.details["per"].split(",")}
