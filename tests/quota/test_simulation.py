"""What limits would have refused in the past: whom, when, and how near the others came."""

from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.applied import Target
from quota.charges import Charges
from quota.limit import Dimension, Limit, Mode, Unit, concurrent_requests, requests_per_minute, tokens_per_day
from quota.simulation import MOST_CALLERS, LimitOutcome, PastRequest, RefusedCaller, Report, simulate
from tests.support.values import NOON_MS, amounts, sliding

SECOND, MINUTE = 1000, 60_000
NO_CEILING = 10**15


def past(number: int, at_ms: int = 0, **changes: object) -> PastRequest:
    """A request of one token, `at_ms` after noon, that runs for a second."""
    made = {"principal_id": "key_a", "model": "demo", "tenant_id": "ten_a", "lasts_ms": SECOND} | changes
    asked = changes.get("asked", amounts())
    assert isinstance(asked, Charges)
    settled = changes.get("settled", asked)
    assert isinstance(settled, Charges)
    lasts_ms = made["lasts_ms"]
    assert isinstance(lasts_ms, int)
    target = Target(
        organization_id="org_a",
        tenant_id=str(made["tenant_id"]),
        principal_id=str(made["principal_id"]),
        route="/v1/chat/completions",
        model=str(made["model"]),
    )
    admitted_ms = NOON_MS + at_ms
    return PastRequest(
        request_id=f"request {number}",
        admitted_ms=admitted_ms,
        ended_ms=admitted_ms + lasts_ms,
        target=target,
        asked=asked,
        least=asked if changes.get("least") is None else changes["least"],  # type: ignore[arg-type]
        settled=settled,
    )


async def stream(requests: Iterable[PastRequest]) -> AsyncIterator[PastRequest]:
    for request in requests:
        yield request


async def replayed(requests: Iterable[PastRequest], *limits: Limit, counted_from_ms: int = 0) -> Report:
    """Replay them under limits of their tenant."""
    return await simulate(stream(requests), lambda _: [(Dimension.TENANT, limits)], counted_from_ms=counted_from_ms)


def only(report: Report) -> LimitOutcome:
    [outcome] = report.limits
    return outcome


async def test_what_is_over_a_ceiling_is_refused_until_the_window_has_passed() -> None:
    requests = [past(number, at_ms) for number, at_ms in enumerate((0, 10, 20, 30, 2 * MINUTE))]
    report = await replayed(requests, requests_per_minute(2))
    outcome = only(report)
    assert (report.requests, report.refused) == (5, 2)
    assert (outcome.requests, outcome.refused, outcome.share) == (5, 2, 0.4)
    assert (outcome.first_ms, outcome.last_ms) == (NOON_MS + 20, NOON_MS + 30)
    assert (outcome.peak, outcome.peak_subject) == (2, "tenant:ten_a")
    assert outcome.callers == (RefusedCaller(principal_id="key_a", model="demo", requests=2),)
    assert (outcome.owner, outcome.others) == (Dimension.TENANT, 0)


async def test_a_slot_is_held_as_long_as_a_request_ran() -> None:
    long = past(0, lasts_ms=5 * SECOND)
    others = [past(1, SECOND), past(2, 5 * SECOND), past(3, 5 * SECOND)]
    report = await replayed([long, *others], concurrent_requests(1))
    assert only(report).refused == 2
    assert only(report).first_ms == NOON_MS + SECOND, "the second ends as the third begins"


async def test_what_ends_gives_back_what_it_did_not_use() -> None:
    first = past(0, asked=amounts(900), settled=amounts(100))
    second = past(1, 2 * SECOND, asked=amounts(900))
    assert (await replayed([first, second], tokens_per_day(1000))).refused == 0
    assert (await replayed([first, past(1, SECOND // 2, asked=amounts(900))], tokens_per_day(1000))).refused == 1


async def test_what_passes_its_reservation_shows_in_the_peak() -> None:
    report = await replayed([past(0, asked=amounts(10), settled=amounts(70))], tokens_per_day(50))
    assert (only(report).peak, only(report).refused) == (70, 0)


async def test_what_was_before_the_period_fills_the_windows_and_is_not_counted() -> None:
    requests = [past(number, number * SECOND) for number in range(4)]
    report = await replayed(requests, requests_per_minute(2), counted_from_ms=NOON_MS + 3 * SECOND)
    assert (report.requests, report.refused) == (1, 1)
    assert only(report).requests == 1


async def test_a_limit_in_shadow_mode_refuses_nothing_and_says_what_it_would_have() -> None:
    shadow = msgspec.structs.replace(sliding(1), mode=Mode.SHADOW)
    report = await replayed([past(0), past(1)], shadow)
    assert (report.refused, only(report).refused) == (0, 1)


async def test_of_two_limits_the_one_that_refuses_is_named() -> None:
    report = await replayed([past(number) for number in range(5)], requests_per_minute(3), tokens_per_day(100))
    refused = {outcome.limit.unit: outcome.refused for outcome in report.limits}
    assert refused == {Unit.REQUESTS: 2, Unit.TOKENS: 0}


async def test_each_tenant_has_its_own_limits_and_counters() -> None:
    requests = [past(number, tenant_id=tenant) for number, tenant in enumerate(("ten_a", "ten_b") * 2)]

    def carried(target: Target) -> list[tuple[Dimension, Sequence[Limit]]]:
        own = [requests_per_minute(1)] if target.tenant_id == "ten_a" else []
        return [(Dimension.ORGANIZATION, [requests_per_minute(3)]), (Dimension.TENANT, own)]

    report = await simulate(stream(requests), carried)
    assert {outcome.owner: (outcome.requests, outcome.refused) for outcome in report.limits} == {
        Dimension.ORGANIZATION: (4, 0),
        Dimension.TENANT: (2, 1),
    }


async def test_those_of_whom_most_was_refused_come_first_and_the_others_are_counted() -> None:
    callers = [f"key_{number:02}" for number in range(MOST_CALLERS + 2)]
    requests = [past(number, principal_id=caller) for number, caller in enumerate([*callers, "key_11", "key_11"])]
    outcome = only(await replayed(requests, requests_per_minute(0)))
    assert outcome.callers[0] == RefusedCaller(principal_id="key_11", model="demo", requests=3)
    assert len(outcome.callers) == MOST_CALLERS
    assert outcome.others == 2


async def test_nothing_is_no_fault() -> None:
    assert await replayed([], requests_per_minute(1)) == Report(requests=0, refused=0, limits=())
    assert (await replayed([past(0)])).requests == 1


_REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 20 * SECOND),
        st.integers(0, 2 * MINUTE),
        st.integers(0, 300),
        st.integers(0, 300),
        st.sampled_from(["key_a", "key_b"]),
    ),
    max_size=40,
)


def _history(drawn: list[tuple[int, int, int, int, str]]) -> list[PastRequest]:
    requests, at_ms = [], 0
    for number, (gap_ms, lasts_ms, asked, used, principal) in enumerate(drawn):
        at_ms += gap_ms
        requests.append(
            past(
                number,
                at_ms,
                lasts_ms=lasts_ms,
                asked=amounts(asked),
                settled=amounts(used),
                principal_id=principal,
            )
        )
    return requests


@given(drawn=_REQUESTS)
async def test_without_ceilings_nothing_is_refused(drawn: list[tuple[int, int, int, int, str]]) -> None:
    limits = (requests_per_minute(NO_CEILING), tokens_per_day(NO_CEILING), concurrent_requests(NO_CEILING))
    report = await replayed(_history(drawn), *limits)
    assert (report.requests, report.refused) == (len(drawn), 0)
    assert all(outcome.refused == 0 and outcome.first_ms is None for outcome in report.limits)


@given(drawn=_REQUESTS, ceilings=st.tuples(st.integers(0, 20), st.integers(0, 20)))
async def test_a_lower_ceiling_of_requests_never_lets_more_pass(
    drawn: list[tuple[int, int, int, int, str]], ceilings: tuple[int, int]
) -> None:
    lower, higher = sorted(ceilings)
    history = _history(drawn)
    tight, loose = [await replayed(history, requests_per_minute(ceiling)) for ceiling in (lower, higher)]
    assert tight.refused >= loose.refused


@given(drawn=_REQUESTS, requests=st.integers(0, 10), tokens=st.integers(0, 2000), slots=st.integers(0, 5))
async def test_the_sums_of_a_report_agree(
    drawn: list[tuple[int, int, int, int, str]], requests: int, tokens: int, slots: int
) -> None:
    limits = (requests_per_minute(requests), tokens_per_day(tokens), concurrent_requests(slots))
    history = _history(drawn)
    report = await replayed(history, *limits)
    assert report == await replayed(history, *limits), "it depends on nothing else"
    assert report.requests == len(history)
    assert report.refused == sum(outcome.refused for outcome in report.limits)
    for outcome in report.limits:
        assert outcome.requests == len(history)
        assert outcome.refused == sum(caller.requests for caller in outcome.callers) + outcome.others
        assert (outcome.first_ms is None) is (outcome.refused == 0)
        if outcome.limit.unit is not Unit.TOKENS:
            assert outcome.peak <= outcome.limit.ceiling


@pytest.mark.parametrize("lasts_ms", [-SECOND, 0])
async def test_an_end_before_its_beginning_is_an_end_at_once(lasts_ms: int) -> None:
    report = await replayed([past(0, lasts_ms=lasts_ms), past(1)], concurrent_requests(1))
    assert report.refused == 0
