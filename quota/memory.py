"""How do the limits work inside one process? The promise of `quota.reservation`, kept in plain dictionaries.

The same algorithm as the Lua scripts, readable: the contract suite runs over both, and a property test compares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import NOTHING, Charges
from quota.counters import SLOT_RETRY_MS, Hold, SlotCounter, WindowCounter, burst_of, span_of
from quota.limit import Window
from quota.memory_events import MemorySettledEvents
from quota.reservation import (
    Claim,
    Exceeded,
    Known,
    Overdue,
    Progress,
    Reservation,
    SettledEvent,
    Settlement,
    Standing,
)


@dataclass(slots=True)
class _Record:
    claim: Claim
    reservation: Reservation
    holds: list[Hold]
    lease_end_ms: int
    stage: str
    events: int = 0
    stopping: str = ""
    step: bytes = b""

    def follows(self, progress: Progress) -> bool:
        return not self.stage or self.stage in progress.after

    def known(self) -> Known:
        return Known(
            request_id=self.claim.request_id,
            admission=self.claim.admission,
            stage=self.stage,
            events=self.events,
            at_ms=self.reservation.at_ms,
            stopping=self.stopping,
            step=self.step,
        )


@dataclass(frozen=True, slots=True)
class _Refusal:
    applied: AppliedLimit
    used: int
    least: int
    retry_after_ms: int | None

    @property
    def rank(self) -> tuple[int, bool, int]:
        """By priority, then one that never fits, then the longer wait."""
        return self.applied.limit.priority, self.retry_after_ms is None, self.retry_after_ms or 0


class MemoryReservations:
    """Reservations of one process. `now_ms` is milliseconds since the epoch; `log` is what observers are told."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._open: dict[str, _Record] = {}
        self._settled: set[str] = set()
        self._released: set[str] = set()
        self._windows: dict[str, WindowCounter] = {}
        self._slots: dict[str, SlotCounter] = {}
        self._events = MemorySettledEvents()
        self.log: list[bytes] = []

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`."""
        known = self._open.get(claim.request_id)
        if known is not None:
            return known.reservation
        now_ms = self._now_ms()
        if claim.request_id in self._settled or claim.request_id in self._released:
            return Reservation(at_ms=now_ms, taken=(), standings=())
        found = [self._refusal(claim, each, now_ms) for each in claim.limits.limits]
        refusals = [refusal for refusal in found if refusal and refusal.applied.limit.enforced]
        if not refusals:
            shadowed = tuple(index for index, refusal in enumerate(found) if refusal)
            return self._take(claim, shadowed, now_ms)
        named = max(refusals, key=lambda refusal: refusal.rank)  # of equals the first
        return Exceeded(
            limit=named.applied,
            used=named.used,
            demanded=named.least,
            retry_after_ms=named.retry_after_ms,
            standings=self._standings(claim.limits, now_ms),
        )

    async def settle(self, settlement: Settlement) -> bool:
        """See `Reservations.settle`."""
        request_id = settlement.request_id
        record = self._open.get(request_id)
        if record is None:
            if settlement.admission is None or request_id in self._settled:
                return False
            admission, reserved = settlement.admission, None
        else:
            if settlement.only_if_overdue and record.lease_end_ms > self._now_ms():
                return False
            if not record.follows(settlement.progress):
                return False
            admission, reserved = settlement.admission or record.claim.admission, record.known()
            self._end(request_id, settlement.charges)
        self._events.append(settlement, admission, reserved, now_ms=self._now_ms())
        self._tell(settlement.progress.event)
        self._settled.add(request_id)
        return True

    async def release(self, organization_id: str, request_id: str) -> bool:
        """See `Reservations.release`."""
        del organization_id
        if request_id not in self._open:
            self._released.add(request_id)
            return False
        self._end(request_id, NOTHING)
        return True

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, progress: Progress) -> str | None:
        """See `Reservations.renew`."""
        del organization_id
        record = self._open.get(request_id)
        if record is None:
            return None
        record.lease_end_ms = self._now_ms() + lease_ms
        record.events = max(record.events, progress.events)
        for hold in record.holds:
            if hold.limit.window is Window.LEASE:
                self._slots_of(hold.counter).ends[request_id] = record.lease_end_ms
        if progress.stage and record.follows(progress):
            record.stage, record.step = progress.stage, progress.event
            self._tell(progress.event)
        return record.stopping

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        """See `Reservations.stop`."""
        del organization_id
        record = self._open.get(request_id)
        if record is None:
            return False
        record.stopping = record.stopping or why
        return True

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        """See `Reservations.find`."""
        del organization_id
        record = self._open.get(request_id)
        if record is not None:
            return record.known()
        return self._events.find(request_id)

    async def open_of(self, organization_id: str, tenant_id: str, *, limit: int) -> list[Known]:
        """See `Reservations.open_of`."""
        del organization_id
        running = [record.known() for record in self._open.values() if record.claim.tenant_id == tenant_id]
        placed = [(known.at_ms or 0, known) for known in running] + list(self._events.of_tenant(tenant_id))
        placed.sort(key=lambda each: (each[0], each[1].request_id), reverse=True)
        return [known for _, known in placed[:limit]]

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        """See `Reservations.progress`."""
        records = [self._open.get(request_id) for _, request_id in requests]
        return [None if record is None else record.events for record in records]

    async def overdue(self, *, limit: int) -> list[Overdue]:
        """See `Reservations.overdue`."""
        now_ms = self._now_ms()
        found = [
            Overdue(
                request_id=request_id,
                admission=record.claim.admission,
                events=record.events,
                stopping=record.stopping,
            )
            for request_id, record in self._open.items()
            if record.lease_end_ms <= now_ms
        ]
        return found[:limit]

    async def standings(self, organization_id: str, limits: AppliedLimits) -> tuple[Standing, ...]:
        """See `Reservations.standings`."""
        del organization_id
        return self._standings(limits, self._now_ms())

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """See `SettledEvents.read`; never waits."""
        return await self._events.read(count=count, wait_ms=wait_ms)

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """See `SettledEvents.acknowledge`."""
        await self._events.acknowledge(events)

    def used(self, applied_limit: AppliedLimit, time_zone: str = "UTC") -> int:
        """What the limit's counter holds now, in its unit."""
        limits = AppliedLimits((applied_limit,), time_zone)
        return self._standing(limits, applied_limit, self._now_ms()).used

    def _refusal(self, claim: Claim, applied: AppliedLimit, now_ms: int) -> _Refusal | None:
        """Why the claim does not fit under a limit; None when it does."""
        limit, least = applied.limit, claim.least.of(applied.limit.unit)
        if least <= self._room(claim.limits, applied, now_ms):
            return None
        retry_after_ms: int | None = SLOT_RETRY_MS
        if least > limit.ceiling or 0 < burst_of(limit) < least:
            retry_after_ms = None
        elif limit.window is not Window.LEASE:
            span = span_of(limit, claim.limits.zone_of(applied), now_ms)
            retry_after_ms = self._window_of(applied.counter).retry_after_ms(limit, span, least, now_ms)
        used = self._standing(claim.limits, applied, now_ms).used
        return _Refusal(applied, used, least, retry_after_ms)

    def _room(self, limits: AppliedLimits, applied: AppliedLimit, now_ms: int) -> int:
        limit = applied.limit
        if limit.window is Window.LEASE:
            return limit.ceiling - self._slots_of(applied.counter).standing(now_ms).used
        span = span_of(limit, limits.zone_of(applied), now_ms)
        return self._window_of(applied.counter).room(limit, span, now_ms)

    def _take(self, claim: Claim, shadowed: tuple[int, ...], now_ms: int) -> Reservation:
        lease_end_ms = now_ms + claim.lease_ms
        holds = [self._hold(claim, each, now_ms) for each in claim.limits.limits]
        reservation = Reservation(
            at_ms=now_ms,
            taken=tuple(hold.amount for hold in holds),
            standings=self._standings(claim.limits, now_ms),
            shadowed=shadowed,
        )
        self._open[claim.request_id] = _Record(claim, reservation, holds, lease_end_ms, claim.stage)
        self._tell(claim.event)
        return reservation

    def _hold(self, claim: Claim, applied: AppliedLimit, now_ms: int) -> Hold:
        limit, counter = applied.limit, applied.counter
        amount = self._amount(claim, applied, now_ms)
        if limit.window is Window.LEASE:
            self._slots_of(counter).ends[claim.request_id] = now_ms + claim.lease_ms
            return Hold(counter=counter, limit=limit, amount=amount, slice=-1, at_ms=now_ms)
        span = span_of(limit, claim.limits.zone_of(applied), now_ms)
        self._window_of(counter).take(limit, span, amount, now_ms)
        return Hold(counter=counter, limit=limit, amount=amount, slice=span.slice, at_ms=now_ms)

    def _amount(self, claim: Claim, applied: AppliedLimit, now_ms: int) -> int:
        """What to take: as much as is asked for and fits, and no less than will do. In shadow mode all."""
        amount, least = claim.amounts.of(applied.limit.unit), claim.least.of(applied.limit.unit)
        if applied.limit.enforced:
            amount = min(amount, self._room(claim.limits, applied, now_ms))
        return max(least, amount)

    def _end(self, request_id: str, charges: Charges) -> None:
        for hold in self._open.pop(request_id).holds:
            if hold.limit.window is Window.LEASE:
                self._slots_of(hold.counter).ends.pop(request_id, None)
            else:
                self._window_of(hold.counter).replace(hold, charges.of(hold.limit.unit), self._now_ms())

    def _standings(self, limits: AppliedLimits, now_ms: int) -> tuple[Standing, ...]:
        return tuple(self._standing(limits, each, now_ms) for each in limits.limits)

    def _standing(self, limits: AppliedLimits, applied: AppliedLimit, now_ms: int) -> Standing:
        if applied.limit.window is Window.LEASE:
            return self._slots_of(applied.counter).standing(now_ms)
        span = span_of(applied.limit, limits.zone_of(applied), now_ms)
        return self._window_of(applied.counter).standing(span, now_ms)

    def _window_of(self, counter: str) -> WindowCounter:
        return self._windows.setdefault(counter, WindowCounter())

    def _slots_of(self, counter: str) -> SlotCounter:
        return self._slots.setdefault(counter, SlotCounter())

    def _tell(self, event: bytes) -> None:
        if event:
            self.log.append(event)
