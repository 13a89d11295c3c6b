"""Calendar periods: without a gap, without an overlap, and as long as the zone's clock makes them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.calendar import boundaries
from quota.limit import CALENDAR, Window

HOUR_MS = 3_600_000
zones = st.sampled_from(sorted(available_timezones()))
windows = st.sampled_from(sorted(CALENDAR))
moments = st.integers(0, 4_000_000_000_000)


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def _local(zone: str, ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)


def _label(window: Window, local: datetime) -> tuple[int, ...]:
    day = (local.year, local.month)
    return day if window is Window.CALENDAR_MONTH else (*day, local.day)


@given(windows, zones, moments)
@settings(deadline=None, max_examples=500)
def test_periods_follow_each_other_and_hold_the_moment(window: Window, zone: str, now_ms: int) -> None:
    before, begin, end, after = boundaries(window, zone, now_ms)
    assert before < begin <= now_ms < end < after
    assert boundaries(window, zone, begin - 1)[1:] == (before, begin, end)
    assert boundaries(window, zone, begin) == boundaries(window, zone, end - 1) == (before, begin, end, after)
    assert boundaries(window, zone, end)[:3] == (begin, end, after)


@given(st.sampled_from([Window.CALENDAR_DAY, Window.CALENDAR_MONTH]), zones, moments)
@settings(deadline=None, max_examples=500)
def test_a_day_or_month_begins_when_the_clock_of_the_zone_first_shows_it(
    window: Window, zone: str, now_ms: int
) -> None:
    _, begin, end, _ = boundaries(window, zone, now_ms)
    label = _label(window, _local(zone, begin))
    # A clock that is set back across midnight may show the day before once more.
    assert _label(window, _local(zone, begin - 1)) < label >= _label(window, _local(zone, now_ms))
    assert _label(window, _local(zone, end - 1)) <= label < _label(window, _local(zone, end))


@given(st.sampled_from([Window.CALENDAR_DAY, Window.CALENDAR_MONTH]), moments)
@settings(deadline=None)
def test_in_utc_it_is_the_naive_thing(window: Window, now_ms: int) -> None:
    start = datetime.fromtimestamp(now_ms // 1000, UTC).replace(hour=0, minute=0, second=0)
    if window is Window.CALENDAR_MONTH:
        start = start.replace(day=1)
    _, begin, end, _ = boundaries(window, "UTC", now_ms)
    assert begin == start.timestamp() * 1000
    days = 32 if window is Window.CALENDAR_MONTH else 1
    following = start + timedelta(days=days)
    assert end == (following.replace(day=1) if days > 1 else following).timestamp() * 1000


@given(zones, st.integers(1_000_000_000_000, 4_000_000_000_000))
@settings(deadline=None, max_examples=300)
def test_an_hour_is_an_hour_from_full_to_full(zone: str, now_ms: int) -> None:
    _, begin, end, _ = boundaries(Window.CALENDAR_HOUR, zone, now_ms)
    full = [_local(zone, at).minute == 0 and _local(zone, at).second == 0 for at in (begin, end)]
    assert (end - begin == HOUR_MS and all(full)) or (end - begin < HOUR_MS and any(full))


@pytest.mark.parametrize(
    ("zone", "now", "begin", "hours"),
    [
        ("UTC", "2026-03-29T12:00:00", "2026-03-29T00:00:00", 24),
        ("Europe/Berlin", "2026-03-29T12:00:00", "2026-03-28T23:00:00", 23),
        ("Europe/Berlin", "2026-10-25T00:30:00", "2026-10-24T22:00:00", 25),
        ("Asia/Kolkata", "2026-06-01T18:29:59", "2026-05-31T18:30:00", 24),
        ("Australia/Lord_Howe", "2026-04-04T14:00:00", "2026-04-04T13:00:00", 24.5),
        ("Australia/Lord_Howe", "2026-10-03T14:00:00", "2026-10-03T13:30:00", 23.5),
        ("Africa/Cairo", "2026-04-24T12:00:00", "2026-04-23T22:00:00", 23),  # there is no midnight
        ("Africa/Cairo", "2026-10-29T12:00:00", "2026-10-28T21:00:00", 25),  # its last hour comes twice
        ("America/Havana", "2026-11-01T04:30:00", "2026-11-01T04:00:00", 25),  # its first one does
        ("America/St_Johns", "2010-11-07T02:45:00", "2010-11-07T02:30:00", 25),  # Saturday comes back for 59 minutes
        ("Pacific/Apia", "2011-12-30T12:00:00", "2011-12-30T10:00:00", 24),  # the 30th never was
    ],
)
def test_days_on_which_the_clock_is_changed(zone: str, now: str, begin: str, hours: float) -> None:
    _, found, end, _ = boundaries(Window.CALENDAR_DAY, zone, _ms(now))
    assert (found, end - found) == (_ms(begin), hours * HOUR_MS)


@pytest.mark.parametrize(
    ("zone", "now", "begin", "minutes"),
    [
        ("Asia/Kathmandu", "2026-06-01T00:14:59", "2026-05-31T23:15:00", 60),
        ("Europe/Berlin", "2026-10-25T00:30:00", "2026-10-25T00:00:00", 60),  # two, the first time
        ("Europe/Berlin", "2026-10-25T01:30:00", "2026-10-25T01:00:00", 60),  # and the second
        ("Europe/Berlin", "2026-03-29T01:30:00", "2026-03-29T01:00:00", 60),  # three, right after one
        ("Australia/Lord_Howe", "2026-04-04T15:10:00", "2026-04-04T15:00:00", 30),
        ("Australia/Lord_Howe", "2026-10-03T15:40:00", "2026-10-03T15:30:00", 30),
    ],
)
def test_hours_at_which_the_clock_is_changed(zone: str, now: str, begin: str, minutes: int) -> None:
    _, found, end, _ = boundaries(Window.CALENDAR_HOUR, zone, _ms(now))
    assert (found, (end - found) / 60_000) == (_ms(begin), minutes)


def test_a_zone_that_is_none_is_an_error() -> None:
    with pytest.raises(ZoneInfoNotFoundError):
        boundaries(Window.CALENDAR_DAY, "Europe/Atlantis", 0)
