"""How far is a counter from what the ledger says? Slices of windows, and the differences between two accounts of them.

Slots are not compared: they are held by leases, which end by themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quota.applied import AppliedLimits
from quota.calendar import boundaries
from quota.limit import CALENDAR, MS, SLICES, Limit, Unit, Window


class Period(NamedTuple):
    """How a window is cut into slices; counters of the same period have the same slices.

    `seconds` is 0 for calendar windows, `time_zone` empty for sliding ones.
    """

    window: Window
    seconds: int
    time_zone: str

    @property
    def calendar(self) -> bool:
        """Whether it is the calendar's: then one slice counts at a time."""
        return self.window in CALENDAR

    @property
    def slice_ms(self) -> int:
        """Length of a slice of a sliding window, as `Limit.slice_ms`."""
        return -(-self.seconds * MS // SLICES)


class Slice(NamedTuple):
    """A slice of a window: it begins at `starts_ms`, and counts until `ends_ms`, epoch milliseconds.

    While it counts, none before `oldest` need be kept.
    """

    number: int
    oldest: int
    starts_ms: int
    ends_ms: int


class Span(NamedTuple):
    """What a window holds at a moment: from `since_ms` up to, not including, `until_ms`, in slices of `slice_ms`.

    The slice of a moment is its distance from `base_ms` in whole slices, and `first` more.
    """

    since_ms: int
    until_ms: int
    slice_ms: int
    base_ms: int
    first: int


@dataclass(frozen=True, slots=True)
class Watched:
    """A counter of a window that is compared: its organization's, under this limit, in these time zone's days."""

    organization_id: str
    name: str
    limit: Limit
    period: Period


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a counter in Redis holds: `settled` by slice, without what running requests have reserved.

    `unexplained` is what its sum holds beside its slices.
    """

    settled: Mapping[int, int]
    unexplained: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is to be added to one slice of a counter. `level` is its bucket's, should it have none."""

    counter: str
    slice: Slice
    difference: int
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A counter that is not what the ledger says, in units of `unit`: settled according to Redis, and to the ledger."""

    organization_id: str
    counter: str
    unit: Unit
    redis: int
    ledger: int

    @property
    def difference(self) -> int:
        """How much the counter holds too much; negative: too little. 0 when only its slices differ."""
        return self.redis - self.ledger


def period_of(limit: Limit, time_zone: str) -> Period:
    """The period of a window, a sliding or a calendar one."""
    if limit.window in CALENDAR:
        return Period(limit.window, 0, time_zone)
    return Period(limit.window, limit.seconds, "")


def watched(organization_id: str, limits: AppliedLimits) -> list[Watched]:
    """The counters of the windows among the limits of a request."""
    return [
        Watched(organization_id, each.counter, each.limit, period_of(each.limit, limits.zone_of(each)))
        for each in limits.limits
        if each.limit.window is not Window.LEASE
    ]


def slice_at(period: Period, at_ms: int) -> Slice:
    """The slice that a moment falls into."""
    if period.calendar:
        _, start, end, _ = boundaries(period.window, period.time_zone, at_ms)
        return Slice(start, start, start, end)
    return _sliding(period, at_ms // period.slice_ms)


def live_slices(period: Period, now_ms: int) -> list[Slice]:
    """The slices that count at a moment, oldest first."""
    newest = slice_at(period, now_ms)
    if period.calendar:
        return [newest]
    return [_sliding(period, number) for number in range(newest.oldest, newest.number + 1)]


def span_at(period: Period, now_ms: int) -> Span:
    """What the window holds at a moment."""
    newest = slice_at(period, now_ms)
    if period.calendar:
        return Span(
            newest.starts_ms, newest.ends_ms, newest.ends_ms - newest.starts_ms, newest.starts_ms, newest.number
        )
    length = period.slice_ms
    return Span(newest.oldest * length, newest.starts_ms + length, length, 0, 0)


def _sliding(period: Period, number: int) -> Slice:
    length = period.slice_ms
    return Slice(number, number - SLICES, number * length, (number + SLICES + 1) * length)


def compare(counter: Watched, held: Held, ledger: Mapping[int, int], now_ms: int) -> tuple[Drift, list[Correction]]:
    """What the counter is off by now, and what makes it right; nothing of the latter when it is right."""
    live = live_slices(counter.period, now_ms)
    in_redis = sum(held.settled.get(each.number, 0) for each in live) + held.unexplained
    drift = Drift(
        organization_id=counter.organization_id,
        counter=counter.name,
        unit=counter.limit.unit,
        redis=in_redis,
        ledger=sum(ledger.get(each.number, 0) for each in live),
    )
    corrections = [
        Correction(counter=counter.name, slice=each, difference=difference)
        for each in live
        if (difference := ledger.get(each.number, 0) - held.settled.get(each.number, 0))
    ]
    if held.unexplained and not corrections:  # whoever corrects a slice makes the sum anew
        corrections = [Correction(counter=counter.name, slice=live[-1], difference=0)]
    return drift, corrections


def bucket_level(limit: Limit, taken: Sequence[tuple[Slice, int]], now_ms: int) -> int:
    """How full the bucket of a limit with a burst is now, in units times milliseconds of its window.

    `taken` is what its slices hold, oldest first. Each is taken to have come at its slice's end: never too empty.
    """
    level, at = 0, 0
    for each, amount in taken:
        came = min(each.starts_ms + limit.slice_ms, now_ms)
        level = max(0, level - (came - at) * limit.ceiling) + amount * limit.window_ms
        at = came
    level = max(0, level - (now_ms - at) * limit.ceiling)
    return min(level, limit.burst * limit.window_ms)
