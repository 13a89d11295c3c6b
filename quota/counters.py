"""How does one counter of a limit count? A window in slices, or slots.

It does what `reserve.lua` and `settle.lua` do. Amounts are in the unit of the limit, times in epoch milliseconds.
"""

import math
from dataclasses import dataclass, field

from quota.calendar import boundaries
from quota.limit import Limit, Window
from quota.reservation import Standing

# How long after a refusal for want of a slot it is worth asking again: any running request may end meanwhile.
SLOT_RETRY_MS = 1000


@dataclass(frozen=True, slots=True)
class Span:
    """Where a limit's window stands: the slice of now, the oldest slice that counts, and for how long a slice does.

    A slice of a sliding window goes by its number; the only one of a calendar window by the moment at which it begins.
    """

    slice: int
    oldest: int
    slice_ms: int
    end_ms: int

    def end_of(self, number: int) -> int:
        """When a slice leaves the window."""
        return self.end_ms - (self.slice - number) * self.slice_ms


def span_of(limit: Limit, time_zone: str, now_ms: int) -> Span:
    """Where the window of a limit that is not of slots stands."""
    if limit.window is Window.SLIDING:
        number, slice_ms = now_ms // limit.slice_ms, limit.slice_ms
        end_ms = (number + limit.live_slices) * slice_ms
        return Span(number, number - limit.live_slices + 1, slice_ms, end_ms)
    _, start, end, _ = boundaries(limit.window, time_zone, now_ms)
    return Span(start, start, 0, end)


def burst_of(limit: Limit) -> int:
    """The most that it takes at once; 0 for what only the window says. Calendar windows and slots have none."""
    return limit.burst if limit.window is Window.SLIDING else 0


@dataclass(slots=True)
class WindowCounter:
    """What a window holds: by slice, and how much of each slice running requests have reserved.

    With a burst also a bucket that drains `ceiling` in a window: `level` is units x window ms, as it was at `level_at`.
    """

    slices: dict[int, int] = field(default_factory=dict)
    reserved: dict[int, int] = field(default_factory=dict)
    level: int = 0
    level_at: int = 0

    def used(self, span: Span) -> int:
        """What it holds now, without the slices that have left it."""
        for held in (self.slices, self.reserved):
            for number in [number for number in held if not span.oldest <= number <= span.slice]:
                del held[number]
        return sum(self.slices.values())

    def standing(self, span: Span, now_ms: int) -> Standing:
        """How it stands now."""
        used = self.used(span)
        reset_ms = span.end_of(max(self.slices)) - now_ms if used > 0 else 0
        return Standing(used=used, reserved=sum(self.reserved.values()), reset_ms=reset_ms)

    def room(self, limit: Limit, span: Span, now_ms: int) -> int:
        """How much more fits."""
        free = limit.ceiling - self.used(span)
        if burst := burst_of(limit):
            free = min(free, (burst * limit.window_ms - self._level(limit.ceiling, now_ms)) // limit.window_ms)
        return free

    def retry_after_ms(self, limit: Limit, span: Span, least: int, now_ms: int) -> int:
        """When enough slices will have left the window, and enough of its burst has drained."""
        used, after = self.used(span), 0
        for number in sorted(self.slices):
            if used + least <= limit.ceiling:
                break
            used -= self.slices[number]
            after = span.end_of(number) - now_ms
        if burst_of(limit) and limit.ceiling:
            excess = self._bucket(limit, now_ms) - (limit.burst - least) * limit.window_ms
            after = max(after, math.ceil(excess / limit.ceiling))
        return after

    def take(self, limit: Limit, span: Span, amount: int, now_ms: int) -> None:
        """Reserve an amount."""
        self.slices[span.slice] = self.slices.get(span.slice, 0) + amount
        self.reserved[span.slice] = self.reserved.get(span.slice, 0) + amount
        if burst_of(limit):
            self._fill(min(self._bucket(limit, now_ms) + amount * limit.window_ms, _full(limit)), now_ms)

    def replace(self, hold: "Hold", fact: int, now_ms: int) -> None:
        """Put the fact in place of what was reserved. A slice that has left its window took its amount with it."""
        if hold.slice not in self.slices:
            return
        self.reserved[hold.slice] -= hold.amount
        less = hold.amount - fact
        self.slices[hold.slice] -= less
        limit = hold.limit
        if burst_of(limit) and less:
            level, given_back = self._level(limit.ceiling, now_ms), less * limit.window_ms
            if less > 0:
                # As much as can have drained since has left the bucket already.
                given_back = max(0, given_back - (now_ms - hold.at_ms) * limit.ceiling)
            self._fill(max(0, level - given_back), now_ms)

    def _bucket(self, limit: Limit, now_ms: int) -> int:
        """Never fuller than full, whatever shadow mode or an answer longer than reserved has put in."""
        return max(0, min(self.level, _full(limit)) - (now_ms - self.level_at) * limit.ceiling)

    def _level(self, ceiling: int, now_ms: int) -> int:
        return max(0, self.level - (now_ms - self.level_at) * ceiling)

    def _fill(self, level: int, now_ms: int) -> None:
        self.level, self.level_at = level, now_ms


def _full(limit: Limit) -> int:
    return limit.burst * limit.window_ms


@dataclass(slots=True)
class SlotCounter:
    """Who holds a slot, and until when."""

    ends: dict[str, int] = field(default_factory=dict)

    def standing(self, now_ms: int) -> Standing:
        """How it stands now, without those whose lease has run out."""
        for request_id in [request_id for request_id, end in self.ends.items() if end <= now_ms]:
            del self.ends[request_id]
        return Standing(used=len(self.ends), reserved=len(self.ends), reset_ms=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What a request has reserved under one limit, and in which slice of its window."""

    counter: str
    limit: Limit
    amount: int
    slice: int
    at_ms: int
