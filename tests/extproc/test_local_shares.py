"""What a worker lets pass by itself: its share of the local limits, slots given back, nothing kept for ever."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import local_shares
from extproc.local_shares import LocalShares, shared
from quota.applied import AppliedLimit, AppliedLimits
from quota.limit import Limit, Mode, OnOutage
from quota.reservation import Exceeded, Reservation
from tests.support.values import Clock, amounts, claim, held, sliding, slots, tokens_a_day


def _local(limit: Limit, **changes: object) -> Limit:
    return msgspec.structs.replace(limit, on_outage=OnOutage.LOCAL, **changes)


def _shares(shares: int = 4) -> tuple[LocalShares, Clock]:
    clock = Clock()
    return LocalShares(shares=shares, now_ms=clock.now_ms), clock


async def _passes(shares: LocalShares, name: str, limits: AppliedLimits, tokens: int = 1) -> bool:
    return isinstance(await shares.take(claim(name, limits, amounts(tokens))), Reservation)


@pytest.mark.parametrize(
    ("ceiling", "burst", "shares", "share"),
    [
        (10, 0, 1, (10, 0)),
        (10, 0, 4, (2, 0)),
        (3, 0, 4, (0, 0)),
        (0, 0, 4, (0, 0)),
        (100, 8, 4, (25, 2)),
        (100, 3, 4, (0, 0)),  # a burst of 0 would be none at all
    ],
)
def test_a_share_is_rounded_down(ceiling: int, burst: int, shares: int, share: tuple[int, int]) -> None:
    [found] = shared(held(_local(sliding(ceiling), burst=burst)), shares).limits
    assert (found.limit.ceiling, found.limit.burst) == share


@given(ceiling=st.integers(0, 2**53), burst=st.integers(0, 2**53), shares=st.integers(1, 1000))
def test_all_shares_together_are_no_more_than_the_limit(ceiling: int, burst: int, shares: int) -> None:
    [found] = shared(held(_local(sliding(ceiling), burst=burst)), shares).limits
    assert found.limit.ceiling * shares <= ceiling
    assert found.limit.burst * shares <= burst
    if burst and not found.limit.burst:
        assert found.limit.ceiling == 0


def test_only_what_is_local_and_enforced_is_counted_and_where_it_was_counted() -> None:
    limits = AppliedLimits(
        (
            AppliedLimit(_local(sliding(8)), "organization:org_a", shared=True),
            AppliedLimit(_local(slots(8), mode=Mode.SHADOW), "tenant:ten_a"),
            AppliedLimit(tokens_a_day(8), "tenant:ten_a"),
        ),
        "Asia/Tokyo",
    )
    found = shared(limits, 2)
    assert [(applied.counter, applied.shared) for applied in found.limits] == [("organization:org_a/sliding", True)]
    assert found.time_zone == "Asia/Tokyo"


async def test_a_slot_comes_back_when_its_request_has_ended() -> None:
    shares, clock = _shares()
    limits = held(_local(slots(4)))
    assert await _passes(shares, "a", limits)
    clock.ms += 30 * 86_400_000  # a stream may be long
    assert not await _passes(shares, "b", limits)
    shares.end("a")
    assert await _passes(shares, "b", limits)
    assert shares.running == 1


async def test_what_was_taken_of_a_window_stays_counted_until_it_has_passed() -> None:
    shares, clock = _shares()
    limits = held(_local(sliding(8, seconds=60)), _local(tokens_a_day(400)))
    assert [await _passes(shares, name, limits, tokens=40) for name in "abc"] == [True, True, False]
    for name in "ab":
        shares.end(name)
    assert not await _passes(shares, "d", limits)
    clock.ms += 62_000
    assert await _passes(shares, "e", limits, tokens=20)
    outcome = await shares.take(claim("f", limits, amounts(1)))
    assert isinstance(outcome, Exceeded)
    assert outcome.limit.limit.name == "tokens"
    assert outcome.used == 100


async def test_a_reservation_that_is_refused_keeps_no_slot() -> None:
    shares, _ = _shares()
    limits = held(_local(slots(8)), _local(sliding(4)))
    assert [await _passes(shares, name, limits) for name in "ab"] == [True, False]
    assert shares.running == 1


async def test_counters_that_hold_nothing_any_more_make_place_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_shares, "MAX_COUNTERS", 4)
    shares, clock = _shares()

    async def of_model(name: str) -> Reservation | Exceeded | None:
        limits = held(
            _local(sliding(8, name="window")), _local(slots(8, name="slot")), subject=f"tenant:t,model:{name}"
        )
        return await shares.take(claim(name, limits))

    assert all([isinstance(await of_model(name), Reservation) for name in ("a", "b", "a", "b")])
    assert await of_model("c") is None
    shares.end("a")
    assert await of_model("c") is None, "its window is not over"
    clock.ms += 62_000
    # The windows of both are empty, and the slot of the one that has ended.
    assert isinstance(await of_model("c"), Reservation)
    assert shares.counters == 3
    assert await of_model("d") is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(0, 40_000)), max_size=40))
async def test_however_requests_come_and_go_no_window_holds_more_than_the_share(
    steps: list[tuple[str, bool, int]],
) -> None:
    shares, clock = _shares(shares=3)
    limits = held(_local(sliding(8, seconds=60)), _local(slots(9)))
    passed: list[int] = []
    running: set[str] = set()
    for number, (name, ends, wait_ms) in enumerate(steps):
        clock.ms += wait_ms
        if ends:
            shares.end(name)
            running.discard(name)
        elif name not in running and await _passes(shares, name, limits):
            running.add(name)
            passed.append(clock.ms)
        assert shares.running == len(running) <= 3
        assert len([at for at in passed if at > clock.ms - 60_000]) <= 2, number


async def test_what_was_taken_short_is_counted_as_it_was_taken() -> None:
    shares, _ = _shares()
    limits = held(_local(tokens_a_day(400)))
    asked = claim("a", limits, amounts(500), least=amounts(10))
    outcome = await shares.take(asked)
    assert isinstance(outcome, Reservation)
    assert outcome.taken == (100,)
    shares.end("a")
    refused = await shares.take(claim("b", limits, amounts(1)))
    assert isinstance(refused, Exceeded)
    assert refused.used == 100


async def test_who_was_never_let_pass_here_ends_unnoticed() -> None:
    shares, _ = _shares()
    shares.end("unknown")
    assert await _passes(shares, "unknown", held(_local(slots(4))))


async def test_asked_again_for_a_request_that_runs_takes_no_more() -> None:
    shares, _ = _shares()
    limits = held(_local(sliding(8)))
    assert [await _passes(shares, name, limits) for name in ("a", "a", "a", "b", "c")] == [True] * 4 + [False]
