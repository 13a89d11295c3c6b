"""What a limit promises: no window of the stated length ever holds more than the ceiling."""

import asyncio

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quota.limit import Limit, Unit, Window, concurrent_requests, limit_name, requests_per_minute, tokens_per_day
from quota.memory import MemoryReservations
from quota.reservation import Reservation
from tests.support.values import Clock, amounts, claim, held, sliding

seconds_of_windows = st.sampled_from([1, 2, 3, 7, 10, 59, 60, 61, 100, 3600])


async def _admitted_at(limit: Limit, times: list[int]) -> list[int]:
    clock = Clock()
    reservations = MemoryReservations(clock.now_ms)
    admitted = []
    for number, time in enumerate(times):
        clock.ms = time
        if isinstance(await reservations.reserve(claim(f"r{number}", held(limit))), Reservation):
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


@given(
    burst=st.integers(1, 30),
    seconds=seconds_of_windows,
    asked=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 30)), min_size=1, max_size=30),
)
@settings(deadline=None, max_examples=200)
def test_in_no_time_more_is_taken_than_the_burst_and_what_drains_meanwhile(
    burst: int, seconds: int, asked: list[tuple[float, int]]
) -> None:
    limit = msgspec.structs.replace(sliding(100, seconds=seconds, unit=Unit.TOKENS), burst=burst)
    taken = asyncio.run(_taken(limit, asked))
    for first, (begin, _) in enumerate(taken):
        total = 0
        for end, amount in taken[first:]:
            total += amount
            assert (total - burst) * limit.window_ms <= (end - begin) * limit.ceiling
            assert total <= limit.ceiling or end - begin >= limit.window_ms


async def _taken(limit: Limit, asked: list[tuple[float, int]]) -> list[tuple[int, int]]:
    clock = Clock()
    reservations = MemoryReservations(clock.now_ms)
    taken = []
    for number, (step, amount) in enumerate(asked):
        clock.ms += int(step * limit.window_ms)
        answer = await reservations.reserve(claim(f"r{number}", held(limit), amounts(amount)))
        if isinstance(answer, Reservation):
            taken.append((clock.ms, amount))
        elif answer.retry_after_ms is not None:
            clock.ms += answer.retry_after_ms
            again = await reservations.reserve(claim(f"r{number}", held(limit), amounts(amount)))
            assert isinstance(again, Reservation), "it was said to fit by now"
            taken.append((clock.ms, amount))
    return taken


def test_the_limits_of_a_plan_mean_what_their_names_say() -> None:
    assert requests_per_minute(7) == Limit(
        name="requests_per_minute", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=7, seconds=60
    )
    assert (tokens_per_day(7).unit, tokens_per_day(7).window) == (Unit.TOKENS, Window.CALENDAR_DAY)
    slots = concurrent_requests(7)
    assert (slots.unit, slots.window) == (Unit.CONCURRENT_REQUESTS, Window.LEASE)
    for limit in (requests_per_minute(7), tokens_per_day(7), slots):
        assert limit.name == limit_name(limit.unit, limit.window, limit.seconds)


@pytest.mark.parametrize(
    ("window", "seconds", "name"),
    [
        (Window.SLIDING, 60, "tokens_per_minute"),
        (Window.SLIDING, 3600, "tokens_per_hour"),
        (Window.SLIDING, 90, "tokens_per_90s"),
        (Window.SLIDING, 86_400, "tokens_per_86400s"),
        (Window.CALENDAR_HOUR, 0, "tokens_per_calendar_hour"),
        (Window.CALENDAR_DAY, 0, "tokens_per_day"),
        (Window.CALENDAR_MONTH, 0, "tokens_per_month"),
    ],
)
def test_a_limit_is_called_by_its_unit_and_window(window: Window, seconds: int, name: str) -> None:
    assert limit_name(Unit.TOKENS, window, seconds) == name


@pytest.mark.parametrize("limit", [requests_per_minute(1), tokens_per_day(2**53), concurrent_requests(0)])
def test_a_limit_is_read_back_as_it_was_written(limit: Limit) -> None:
    assert msgspec.json.decode(msgspec.json.encode(limit), type=Limit) == limit
