"""How much may a worker let pass by itself, while the limits that all workers share cannot be asked?

Its share of each ceiling, counted in its own memory. Nothing of it is told to the store: what passed is settled like
everything else, and charged afterwards.
"""

from collections.abc import Callable
from dataclasses import replace

import msgspec

from quota.applied import AppliedLimits
from quota.limit import Limit, OnOutage
from quota.memory import MemoryReservations
from quota.reservation import Claim, Exceeded, Reservation

# Models are the callers' own text, and each may have a counter of its own.
MAX_COUNTERS = 20_000
_SWEEP_MS = 1000
# A slot is held until the request's own stream ends, which this process sees; no lease need run out.
_FOR_EVER_MS = 2**50


class LocalShares:
    """What one worker counts by itself. `shares` is the number of workers of all sidecars, `now_ms` since the epoch."""

    def __init__(self, *, shares: int, now_ms: Callable[[], int]) -> None:
        self._shares = shares
        self._now_ms = now_ms
        self._kept = _Counting(now_ms)
        # Until when each counter holds something; what is held by slots is seen there.
        self._until: dict[str, int] = {}
        self._sweep_at = 0

    @property
    def counters(self) -> int:
        """How many counters are kept."""
        return len(self._until)

    @property
    def running(self) -> int:
        """How many requests run that were let pass here."""
        return self._kept.running

    async def take(self, claim: Claim) -> Reservation | Exceeded | None:
        """Take room under this worker's share of the claim's limits of class `local`, and no other.

        None when it can keep no more counters.
        """
        limits = shared(claim.limits, self._shares)
        if not self._has_place(limits):
            return None
        outcome = await self._kept.reserve(
            msgspec.structs.replace(claim, limits=limits, admission=b"", lease_ms=_FOR_EVER_MS)
        )
        now_ms = self._now_ms()
        # Fewer stand in the answer to a request that is asked for again after its limits have changed.
        for applied, standing in zip(limits.limits, outcome.standings, strict=False):
            self._until[applied.counter] = now_ms + standing.reset_ms
        return outcome

    def end(self, request_id: str) -> None:
        """A request's stream has ended: its slots are free, and what it took else stays counted as it was taken."""
        self._kept.forget(request_id)

    def _has_place(self, limits: AppliedLimits) -> bool:
        new = {applied.counter for applied in limits.limits} - self._until.keys()
        if len(self._until) + len(new) <= MAX_COUNTERS or not new:
            return True
        now_ms = self._now_ms()
        if now_ms >= self._sweep_at:
            self._sweep_at = now_ms + _SWEEP_MS
            idle = {counter for counter, until in self._until.items() if until <= now_ms}
            for counter in self._kept.drop(idle):
                del self._until[counter]
        return len(self._until) + len(new) <= MAX_COUNTERS


class _Counting(MemoryReservations):
    """Reservations that are never settled: a request that has ended is forgotten, and its counters go on."""

    @property
    def running(self) -> int:
        """How many requests have not ended."""
        return len(self._open)

    def forget(self, request_id: str) -> None:
        """End a request, as if it had used what it has taken."""
        record = self._open.pop(request_id, None)
        for hold in () if record is None else record.holds:
            slots = self._slots.get(hold.counter)
            if slots is not None:
                slots.ends.pop(request_id, None)

    def drop(self, idle: set[str]) -> set[str]:
        """Forget counters that hold nothing; those among them that are forgotten, for a slot may be taken."""
        dropped = {counter for counter in idle if counter not in self._slots or not self._slots[counter].ends}
        for counter in dropped:
            self._windows.pop(counter, None)
            self._slots.pop(counter, None)
        return dropped


def shared(limits: AppliedLimits, shares: int) -> AppliedLimits:
    """One share of those limits that are of class `local` and enforced. Rounded down: all shares together fit."""
    return AppliedLimits(
        tuple(
            replace(applied, limit=_share(applied.limit, shares))
            for applied in limits.limits
            if applied.limit.enforced and applied.limit.on_outage is OnOutage.LOCAL
        ),
        limits.time_zone,
    )


def _share(limit: Limit, shares: int) -> Limit:
    ceiling, burst = limit.ceiling // shares, limit.burst // shares
    if limit.burst and not burst:
        ceiling = 0  # a burst of 0 would be none
    return msgspec.structs.replace(limit, ceiling=ceiling, burst=burst)
