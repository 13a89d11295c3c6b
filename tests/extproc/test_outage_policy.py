"""What an outage of the limits means for a request: the strictest class of its enforced limits decides."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.refusal import Reason, Refusal
from extproc.local_shares import LocalShares
from extproc.outage_policy import OutagePolicy, policy_of
from extproc.record import Degraded
from quota.limit import Limit, Mode, OnOutage
from tests.support.values import Clock, amounts, claim, held, sliding, slots, tokens_a_day

CLOSED, OPEN, LOCAL = OnOutage.CLOSED, OnOutage.OPEN, OnOutage.LOCAL


def _classed(on_outage: OnOutage, limit: Limit | None = None, *, mode: Mode = Mode.ENFORCE) -> Limit:
    return msgspec.structs.replace(limit or sliding(8, name=f"of_{on_outage}"), on_outage=on_outage, mode=mode)


class _Policy:
    def __init__(self, shares: int = 4) -> None:
        self.told: list[tuple[OnOutage, bool]] = []
        self.clock = Clock()
        self.policy = OutagePolicy(
            shares=LocalShares(shares=shares, now_ms=self.clock.now_ms), observe=lambda *told: self.told.append(told)
        )

    async def decide(self, name: str, *limits: Limit) -> Degraded | Refusal:
        return await self.policy.decide(claim(name, held(*limits)))


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        ([], OPEN),
        ([OPEN], OPEN),
        ([OPEN, LOCAL], LOCAL),
        ([LOCAL, CLOSED, OPEN], CLOSED),
        ([CLOSED], CLOSED),
    ],
)
def test_the_strictest_class_decides(classes: list[OnOutage], found: OnOutage) -> None:
    assert policy_of(held(*(_classed(each) for each in classes))) is found


def test_what_is_in_shadow_mode_decides_nothing() -> None:
    shadow = [_classed(each, mode=Mode.SHADOW) for each in (CLOSED, LOCAL)]
    assert policy_of(held(*shadow)) is OPEN
    assert policy_of(held(*shadow, _classed(LOCAL))) is LOCAL


@given(st.lists(st.tuples(st.sampled_from(OnOutage), st.sampled_from(Mode)), max_size=6))
def test_a_closed_limit_that_is_enforced_is_never_passed(kinds: list[tuple[OnOutage, Mode]]) -> None:
    found = policy_of(held(*(_classed(each, mode=mode) for each, mode in kinds)))
    assert (found is CLOSED) == ((CLOSED, Mode.ENFORCE) in kinds)


async def test_under_a_closed_limit_it_is_refused_and_may_come_again() -> None:
    policy = _Policy()
    found = await policy.decide("a", _classed(CLOSED), _classed(LOCAL))
    assert found == Refusal(reason=Reason.LIMITS_UNAVAILABLE, retry_after_ms=1000)
    assert policy.told == [(CLOSED, False)]
    assert policy.policy.shares.running == 0


async def test_under_open_limits_it_passes() -> None:
    policy = _Policy()
    assert await policy.decide("a", _classed(OPEN, sliding(0))) is Degraded.OPEN
    assert await policy.decide("b") is Degraded.OPEN
    assert policy.told == [(OPEN, True), (OPEN, True)]


async def test_under_a_local_limit_this_workers_share_passes_and_more_is_refused() -> None:
    policy = _Policy()
    limits = (_classed(LOCAL, sliding(9)), _classed(OPEN, sliding(0, name="empty")))
    assert [await policy.decide(name, *limits) for name in "ab"] == [Degraded.LOCAL] * 2
    found = await policy.decide("c", *limits)
    assert isinstance(found, Refusal)
    assert (found.reason, found.headers) == (Reason.RATE_LIMIT_EXCEEDED, ())
    assert found.details["degraded"] == "local"
    assert (found.details["ceiling"], found.details["used"]) == (2, 2)
    assert policy.told == [(LOCAL, True), (LOCAL, True), (LOCAL, False)]


@pytest.mark.parametrize("limit", [sliding(3), slots(3), tokens_a_day(3)])
async def test_what_fits_into_no_share_is_refused_as_long_as_the_outage_lasts(limit: Limit) -> None:
    found = await _Policy().decide("a", _classed(LOCAL, limit))
    assert found == Refusal(reason=Reason.LIMITS_UNAVAILABLE, retry_after_ms=1000)


async def test_calendars_of_the_tenant_hold_in_an_outage_too() -> None:
    policy = _Policy()
    limits = held(_classed(LOCAL, tokens_a_day(8)), time_zone="Asia/Tokyo")
    assert await policy.policy.decide(claim("a", limits, amounts(2))) is Degraded.LOCAL
    found = await policy.policy.decide(claim("b", limits, amounts(1)))
    assert isinstance(found, Refusal)
    assert (found.reason, found.details["time_zone"]) == (Reason.INSUFFICIENT_QUOTA, "Asia/Tokyo")
    # Noon in UTC is nine in the evening in Tokyo.
    assert found.retry_after_ms == 3 * 3_600_000
