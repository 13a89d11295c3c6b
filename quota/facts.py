"""What must the scripts in Redis know of a request's limits? All of it in one message, made once a calendar period."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from quota.applied import AppliedLimit, AppliedLimits
from quota.calendar import boundaries
from quota.charges import Charges
from quota.limit import CALENDAR, Unit, Window

# The order in which the scripts know the numbers of a request; their places count from one, and a slot has none.
UNITS = Charges.__struct_fields__
_NO_PLACE = 0
_SLIDING, _CALENDAR, _SLOTS = 0, 1, 2
_FOREVER_MS = 2**62
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Facts:
    """The message for the scripts, as the header of `reserve.lua` describes it, and how long it says what is so."""

    message: bytes
    from_ms: int
    until_ms: int


class KnownFacts:
    """The facts of the limits that were asked for, as long as somebody holds these."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[AppliedLimits, Facts] = WeakKeyDictionary()

    def of(self, limits: AppliedLimits, now_ms: int) -> Facts:
        """The facts of the limits at a moment, in epoch milliseconds."""
        known = self._known.get(limits)
        if known is None or not known.from_ms <= now_ms < known.until_ms:
            known = self._known[limits] = facts_of(limits, now_ms)
        return known


def facts_of(limits: AppliedLimits, now_ms: int) -> Facts:
    """The facts of the limits at a moment, in epoch milliseconds."""
    rows, from_ms, until_ms = [], 0, _FOREVER_MS
    for each in limits.limits:
        window = each.limit.window
        if window in CALENDAR:
            found = boundaries(window, limits.zone_of(each), now_ms)
            from_ms, until_ms = max(from_ms, found[1]), min(until_ms, found[2])
            rows.append((*_common(_CALENDAR, each), *found))
        else:
            rows.append(_lasting(each))
    return Facts(_ENCODER.encode(rows), from_ms, until_ms)


def _lasting(applied_limit: AppliedLimit) -> tuple[Any, ...]:
    limit = applied_limit.limit
    if limit.window is Window.LEASE:
        return _common(_SLOTS, applied_limit)
    return (
        *_common(_SLIDING, applied_limit),
        limit.slice_ms,
        limit.live_slices,
        limit.window_ms,
        limit.burst,
    )


def _common(kind: int, applied_limit: AppliedLimit) -> tuple[int, int, int, int, int]:
    limit = applied_limit.limit
    place = _NO_PLACE if limit.unit is Unit.CONCURRENT_REQUESTS else UNITS.index(limit.unit) + 1
    return kind, place, limit.ceiling, limit.priority, int(not limit.enforced)
