"""Between which moments does a calendar hour, day or month run in a time zone, on days when the clock is changed too?

A day is as long as the zone's clock makes it, 23 or 25 hours twice a year; one that begins at a midnight which the
clock leaps over begins at the leap. An hour ends when the clock shows a full hour: the one that a change to winter time
repeats is counted as two.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from quota.limit import MS, Window

Boundaries = tuple[int, int, int, int]
_Bounds = tuple[int, int]
_HOUR = 3600
# One entry for each window and time zone in use: the periods around the last moment that was asked for.
_found: dict[tuple[Window, str], Boundaries] = {}


def boundaries(window: Window, time_zone: str, now_ms: int) -> Boundaries:
    """When the periods before, at and after `now_ms` begin, and when the last of them ends: all in epoch milliseconds.

    `window` is a calendar one, `time_zone` an IANA name. Raises `zoneinfo.ZoneInfoNotFoundError`, a KeyError, for a
    zone that this machine does not know.
    """
    known = _found.get((window, time_zone))
    if known is None or not known[1] <= now_ms < known[2]:
        known = _found[window, time_zone] = _boundaries(window, ZoneInfo(time_zone), now_ms // MS)
    return known


def _boundaries(window: Window, zone: ZoneInfo, now: int) -> Boundaries:
    begin, end = _period(window, zone, now)
    before, _ = _period(window, zone, begin - 1)
    _, after = _period(window, zone, end)
    return before * MS, begin * MS, end * MS, after * MS


def _period(window: Window, zone: ZoneInfo, moment: int) -> _Bounds:
    """The period that holds a moment, in seconds."""
    if window is Window.CALENDAR_HOUR:
        return _hour(zone, moment)
    midnight = _wall(zone, moment).replace(hour=0, minute=0, second=0, microsecond=0)
    if window is Window.CALENDAR_DAY:
        return _days(zone, moment, midnight, _next_day)
    return _days(zone, moment, midnight.replace(day=1), _next_month)


def _days(zone: ZoneInfo, moment: int, first: datetime, following: Callable[[datetime], datetime]) -> _Bounds:
    begin, last = _moment_of(zone, first), following(first)
    end = _moment_of(zone, last)
    # A clock that was set back across midnight shows the day before once more, and the new day goes on.
    while end <= moment:
        begin, last = end, following(last)
        end = _moment_of(zone, last)
    return begin, end


def _next_day(midnight: datetime) -> datetime:
    return midnight + timedelta(days=1)


def _next_month(midnight: datetime) -> datetime:
    return (midnight + timedelta(days=31)).replace(day=1)


def _hour(zone: ZoneInfo, moment: int) -> _Bounds:
    past = _past_full_hour(zone, moment)
    begin = moment - (moment + past) % _HOUR
    end = begin + _HOUR
    # A change of the clock by less than an hour, as on Lord Howe Island, begins an hour of its own.
    if _past_full_hour(zone, begin) != past:
        begin = _first(begin, moment, lambda at: _past_full_hour(zone, at) == past)
    if _past_full_hour(zone, end - 1) != past:
        end = _first(moment, end - 1, lambda at: _past_full_hour(zone, at) != past)
    return begin, end


def _past_full_hour(zone: ZoneInfo, moment: int) -> int:
    return _offset(zone, moment) % _HOUR


def _moment_of(zone: ZoneInfo, wall: datetime) -> int:
    """The first moment at which the zone's clock shows this time, or a later one because it leaps over this one."""
    early, late = (int(wall.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (1, 0))
    if early >= late:  # the time exists; once, or twice with the first of them in `late`
        return late
    return _first(early, late, lambda at: _wall(zone, at) >= wall)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first moment after `low` for which it holds, as it does for `high`."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _wall(zone: ZoneInfo, moment: int) -> datetime:
    return datetime.fromtimestamp(moment, UTC).astimezone(zone).replace(tzinfo=None, fold=0)


def _offset(zone: ZoneInfo, moment: int) -> int:
    local = datetime.fromtimestamp(moment, UTC).astimezone(zone)
    return int((local.utcoffset() or timedelta()).total_seconds())
