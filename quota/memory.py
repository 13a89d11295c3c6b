"""How do the limits work inside one process? The promise of `quota.reservation`, kept in plain dictionaries.

The same algorithm as the Lua scripts, readable: the contract suite runs over both, and a property test compares them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from quota.limit import Limit, Window
from quota.reservation import Claim, Demand, Exceeded, Overdue, Reservation, SettledEvent, Settlement

# How long after a refusal for want of a slot it is worth asking again: any running request may end meanwhile.
SLOT_RETRY_MS = 1000


@dataclass(slots=True)
class _Window:
    slices: dict[int, int] = field(default_factory=dict)

    def used(self, limit: Limit, now_ms: int) -> int:
        oldest = now_ms // limit.slice_ms - limit.live_slices + 1
        for number in [number for number in self.slices if number < oldest]:
            del self.slices[number]
        return sum(self.slices.values())

    def room_after_ms(self, demand: Demand, now_ms: int) -> int | None:
        limit, used = demand.limit, self.used(demand.limit, now_ms)
        for number in sorted(self.slices):
            used -= self.slices[number]
            if used + demand.least <= limit.ceiling:
                return (number + limit.live_slices) * limit.slice_ms - now_ms
        return None


@dataclass(slots=True)
class _Hold:
    key: tuple[str, str]
    limit: Limit
    amount: int
    slice: int


@dataclass(slots=True)
class _Record:
    admission: bytes
    reservation: Reservation
    holds: list[_Hold]
    lease_end_ms: int
    events: int = 0


class MemoryReservations:
    """Reservations of one process. `now_ms` is milliseconds since the epoch."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._open: dict[str, _Record] = {}
        self._settled: set[str] = set()
        self._windows: dict[tuple[str, str], _Window] = {}
        self._slots: dict[tuple[str, str], dict[str, int]] = {}
        self._events: list[SettledEvent] = []
        self._event_count = 0

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`."""
        known = self._open.get(claim.request_id)
        if known is not None:
            return known.reservation
        now_ms = self._now_ms()
        if claim.request_id in self._settled:
            return Reservation(at_ms=now_ms, taken=())
        amounts = []
        for demand in claim.demands:
            found = self._room(demand, now_ms)
            if isinstance(found, Exceeded):
                return found
            amounts.append(found)
        return self._take(claim, amounts, now_ms)

    async def settle(self, settlement: Settlement) -> bool:
        """See `Reservations.settle`."""
        request_id = settlement.request_id
        record = self._open.get(request_id)
        if record is None:
            if settlement.admission is None or request_id in self._settled:
                return False
            self._append(settlement.admission, settlement.ending)
            self._settled.add(request_id)
            return True
        if settlement.only_if_overdue and record.lease_end_ms > self._now_ms():
            return False
        self._give_back(request_id, tokens=settlement.tokens, requests=False)
        self._settled.add(request_id)
        self._append(record.admission, settlement.ending)
        return True

    async def release(self, organization_id: str, request_id: str) -> bool:
        """See `Reservations.release`."""
        del organization_id
        if request_id not in self._open:
            return False
        self._give_back(request_id, tokens=0, requests=True)
        return True

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, events: int) -> bool:
        """See `Reservations.renew`."""
        del organization_id
        record = self._open.get(request_id)
        if record is None:
            return False
        record.lease_end_ms = self._now_ms() + lease_ms
        record.events = max(record.events, events)
        for hold in record.holds:
            if hold.limit.window is Window.LEASE:
                self._slots[hold.key][request_id] = record.lease_end_ms
        return True

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        """See `Reservations.progress`."""
        records = [self._open.get(request_id) for _, request_id in requests]
        return [None if record is None else record.events for record in records]

    async def overdue(self, *, limit: int) -> list[Overdue]:
        """See `Reservations.overdue`."""
        now_ms = self._now_ms()
        found = [
            Overdue(request_id=request_id, admission=record.admission, events=record.events)
            for request_id, record in self._open.items()
            if record.lease_end_ms <= now_ms
        ]
        return found[:limit]

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """See `SettledEvents.read`; never waits."""
        del wait_ms
        return self._events[:count]

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """See `SettledEvents.acknowledge`."""
        gone = {event.id for event in events}
        self._events = [event for event in self._events if event.id not in gone]

    def used(self, demand: Demand) -> int:
        """What is taken under a demand's limit now, in its unit."""
        key = (demand.subject, demand.limit.name)
        if demand.limit.window is Window.LEASE:
            return len(self._slots.get(key, {}))
        return self._windows.get(key, _Window()).used(demand.limit, self._now_ms())

    def _room(self, demand: Demand, now_ms: int) -> int | Exceeded:
        limit, key = demand.limit, (demand.subject, demand.limit.name)
        if limit.window is Window.LEASE:
            slots = self._slots.setdefault(key, {})
            for request_id in [request_id for request_id, end in slots.items() if end <= now_ms]:
                del slots[request_id]
            used, retry_after_ms = len(slots), SLOT_RETRY_MS
        else:
            window = self._windows.setdefault(key, _Window())
            used, retry_after_ms = window.used(limit, now_ms), window.room_after_ms(demand, now_ms) or 0
        if used + demand.least <= limit.ceiling:
            return max(demand.least, min(demand.amount, limit.ceiling - used))
        never = demand.least > limit.ceiling
        return Exceeded(limit=limit, used=used, retry_after_ms=None if never else retry_after_ms)

    def _take(self, claim: Claim, amounts: list[int], now_ms: int) -> Reservation:
        lease_end_ms = now_ms + claim.lease_ms
        holds = []
        for demand, amount in zip(claim.demands, amounts, strict=True):
            limit, key = demand.limit, (demand.subject, demand.limit.name)
            if limit.window is Window.LEASE:
                self._slots[key][claim.request_id] = lease_end_ms
                holds.append(_Hold(key, limit, amount, 0))
                continue
            number = now_ms // limit.slice_ms
            slices = self._windows[key].slices
            slices[number] = slices.get(number, 0) + amount
            holds.append(_Hold(key, limit, amount, number))
        reservation = Reservation(at_ms=now_ms, taken=tuple(amounts))
        self._open[claim.request_id] = _Record(claim.admission, reservation, holds, lease_end_ms)
        return reservation

    def _give_back(self, request_id: str, *, tokens: int | None, requests: bool) -> None:
        record = self._open.pop(request_id)
        for hold in record.holds:
            if hold.limit.window is Window.LEASE:
                self._slots[hold.key].pop(request_id, None)
                continue
            slices = self._windows[hold.key].slices
            fact = hold.amount
            if hold.limit.unit == "tokens" and tokens is not None:
                fact = tokens
            elif hold.limit.unit == "requests" and requests:
                fact = 0
            self._windows[hold.key].used(hold.limit, self._now_ms())
            if hold.slice in slices:
                slices[hold.slice] += fact - hold.amount

    def _append(self, admission: bytes, ending: bytes) -> None:
        self._event_count += 1
        self._events.append(SettledEvent(id=str(self._event_count), shard=0, admission=admission, ending=ending))
