"""What a limit promises: no window of the stated length ever holds more than the ceiling."""

import asyncio

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quota import estimate
from quota.limit import (
    Limit,
    Unit,
    Window,
    concurrent_requests,
    requests_per_minute,
    tokens_per_day,
)
from quota.memory import MemoryReservations
from quota.reservation import Reservation
from tests.support.values import Clock, claim, demand, sliding

seconds_of_windows = st.sampled_from([1, 2, 3, 7, 10, 59, 60, 61, 100, 3600])


async def _admitted_at(limit: Limit, times: list[int]) -> list[int]:
    clock = Clock()
    reservations = MemoryReservations(clock.now_ms)
    admitted = []
    for number, time in enumerate(times):
        clock.ms = time
        if isinstance(await reservations.reserve(claim(f"r{number}", demand(limit))), Reservation):
            admitted.append(time)
    return admitted


@given(
    seconds=seconds_of_windows,
    ceiling=st.integers(1, 3),
    start=st.integers(1_700_000_000_000, 1_700_000_100_000),
    steps=st.lists(st.floats(0, 1.2), min_size=1, max_size=30),
)
@example(seconds=1, ceiling=1, start=1_700_000_000_000, steps=[0.99])
@settings(deadline=None, max_examples=200)
def test_no_window_of_the_stated_length_holds_more_than_the_ceiling(
    seconds: int, ceiling: int, start: int, steps: list[float]
) -> None:
    length = seconds * 1000
    times = [start]
    for step in steps:
        times.append(times[-1] + int(step * length))
    admitted = asyncio.run(_admitted_at(sliding(ceiling, seconds=seconds), times))
    for first in admitted:
        assert sum(first <= time < first + length for time in admitted) <= ceiling


@given(seconds=seconds_of_windows, phase=st.floats(0, 0.999))
@settings(deadline=None, max_examples=100)
def test_room_returns_one_slice_late_at_most(seconds: int, phase: float) -> None:
    limit = sliding(1, seconds=seconds)
    start = 1_700_000_000_000 + int(phase * limit.slice_ms)
    back = start + seconds * 1000 + limit.slice_ms + 60  # a slice is a whole number of milliseconds
    assert asyncio.run(_admitted_at(limit, [start, back])) == [start, back]


def test_the_limits_of_a_plan_mean_what_their_names_say() -> None:
    assert requests_per_minute(7) == Limit(
        name="requests_per_minute", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=7, seconds=60
    )
    assert (tokens_per_day(7).unit, tokens_per_day(7).slice_ms, tokens_per_day(7).live_slices) == (
        Unit.TOKENS,
        86_400_000,
        1,
    )
    assert (concurrent_requests(7).unit, concurrent_requests(7).slice_ms) == (Unit.CONCURRENT_REQUESTS, 0)


@pytest.mark.parametrize("limit", [requests_per_minute(1), tokens_per_day(2**53), concurrent_requests(0)])
def test_a_limit_is_read_back_as_it_was_written(limit: Limit) -> None:
    assert msgspec.json.decode(msgspec.json.encode(limit), type=Limit) == limit


@given(st.integers(0, 2**32))
def test_an_estimate_is_at_least_one_token_and_never_short_of_four_bytes_each(size: int) -> None:
    found = estimate.tokens(size)
    assert found >= 1
    assert size <= found * 4 < size + 4 or size == 0
