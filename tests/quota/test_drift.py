"""Slices, what they hold, and how far two accounts of them are apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.calendar import boundaries
from quota.drift import (
    Correction,
    Held,
    Period,
    Watched,
    bucket_level,
    compare,
    live_slices,
    period_of,
    slice_at,
    span_at,
    watched,
)
from quota.limit import Limit, Unit, Window
from tests.support.values import NOON_MS, held, sliding, slots, tokens_a_day

MINUTE = Period(Window.SLIDING, 60, "")
DAY = Period(Window.CALENDAR_DAY, 0, "Asia/Kathmandu")


def counter(limit: Limit, period: Period) -> Watched:
    return Watched("org_a", "a counter", limit, period)


@given(seconds=st.integers(1, 31 * 86_400), at_ms=st.integers(10**12, 2 * 10**12))
def test_a_sliding_window_has_the_slices_of_its_limit(seconds: int, at_ms: int) -> None:
    limit = sliding(1, seconds=seconds)
    period = period_of(limit, "Asia/Kathmandu")
    newest = slice_at(period, at_ms)
    assert period.slice_ms == limit.slice_ms
    assert newest.number == at_ms // limit.slice_ms
    assert newest.starts_ms <= at_ms < newest.starts_ms + limit.slice_ms
    assert newest.ends_ms - newest.starts_ms == limit.live_slices * limit.slice_ms
    live = live_slices(period, at_ms)
    assert len(live) == limit.live_slices
    assert all(each.starts_ms <= at_ms < each.ends_ms for each in live)
    span = span_at(period, at_ms)
    assert (span.since_ms, span.until_ms) == (live[0].starts_ms, newest.starts_ms + limit.slice_ms)


def test_a_calendar_window_has_one_slice_that_begins_where_the_period_does() -> None:
    _, start, end, _ = boundaries(Window.CALENDAR_DAY, "Asia/Kathmandu", NOON_MS)
    [only] = live_slices(DAY, NOON_MS)
    assert only == (start, start, start, end)
    assert span_at(DAY, NOON_MS) == (start, end, end - start, start, start)


def test_slots_are_not_compared() -> None:
    found = watched("org_a", held(slots(1), tokens_a_day(5), sliding(3), time_zone="Asia/Kathmandu"))
    assert [each.period for each in found] == [DAY, MINUTE]


def test_accounts_that_agree_need_no_correction() -> None:
    newest = slice_at(MINUTE, NOON_MS)
    drift, corrections = compare(
        counter(sliding(9), MINUTE), Held(settled={newest.number: 4}), {newest.number: 4}, NOON_MS
    )
    assert (drift.redis, drift.ledger, drift.difference, corrections) == (4, 4, 0, [])


def test_each_slice_is_corrected_by_what_it_is_off() -> None:
    newest = slice_at(MINUTE, NOON_MS)
    older = slice_at(MINUTE, NOON_MS - 5000)
    gone = newest.oldest - 1
    drift, corrections = compare(
        counter(sliding(9), MINUTE),
        Held(settled={newest.number: 4, gone: 100}),
        {newest.number: 1, older.number: 2, gone: 7},
        NOON_MS,
    )
    assert (drift.redis, drift.ledger, drift.difference, drift.unit) == (4, 3, 1, Unit.REQUESTS)
    assert corrections == [
        Correction(counter="a counter", slice=older, difference=2),
        Correction(counter="a counter", slice=newest, difference=-3),
    ]


def test_a_sum_that_is_off_alone_is_made_anew() -> None:
    drift, corrections = compare(counter(tokens_a_day(9), DAY), Held(settled={}, unexplained=-2), {}, NOON_MS)
    assert drift.difference == -2
    assert [(each.slice, each.difference) for each in corrections] == [(slice_at(DAY, NOON_MS), 0)]


@pytest.mark.parametrize(("ago_ms", "level"), [(0, 30 * 60_000), (10_000, 20 * 60_000), (60_000, 0)])
def test_a_bucket_has_drained_since_the_end_of_the_slice_that_filled_it(ago_ms: int, level: int) -> None:
    limit = Limit(name="l", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=60, seconds=60, burst=40)
    came = slice_at(MINUTE, NOON_MS)
    assert bucket_level(limit, [(came, 30)], came.starts_ms + limit.slice_ms + ago_ms) == level


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    limit = Limit(name="l", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=60, seconds=60, burst=40)
    assert bucket_level(limit, [(slice_at(MINUTE, NOON_MS), 500)], NOON_MS) == 40 * 60_000
