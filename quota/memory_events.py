"""How do settled requests wait for the ledger inside one process? In a list, beside what is known of each till then."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quota.reservation import Known, SettledEvent, Settlement


class _Waiting(NamedTuple):
    tenant_id: str
    settled_ms: int
    event: SettledEvent
    known: Known


class MemorySettledEvents:
    """`quota.reservation.SettledEvents` of one process."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}  # by the id of the event, the oldest first
        self._count = 0

    def append(self, settlement: Settlement, admission: bytes, reserved: Known | None, *, now_ms: int) -> None:
        """A request was settled; `reserved` is what it was until now, None when there was no reservation."""
        self._count += 1
        event = SettledEvent(
            id=f"{self._count}-0",
            shard=0,
            admission=admission,
            ending=settlement.ending,
            reserved_ms=None if reserved is None else reserved.at_ms,
        )
        known = Known(
            request_id=settlement.request_id,
            admission=admission,
            stage=settlement.progress.stage,
            events=0 if reserved is None else reserved.events,
            at_ms=event.reserved_ms,
            ending=settlement.ending,
        )
        self._waiting[event.id] = _Waiting(settlement.tenant_id, now_ms, event, known)

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """See `SettledEvents.read`; never waits."""
        del wait_ms
        return [waiting.event for waiting in self._waiting.values()][:count]

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """See `SettledEvents.acknowledge`."""
        for event in events:
            self._waiting.pop(event.id, None)

    def find(self, request_id: str) -> Known | None:
        """A request that was settled and is not in the ledger."""
        return next((each.known for each in self._waiting.values() if each.known.request_id == request_id), None)

    def of_tenant(self, tenant_id: str) -> Iterator[tuple[int, Known]]:
        """Those of a tenant, with the milliseconds since the epoch that place them among its requests."""
        for each in self._waiting.values():
            if each.tenant_id == tenant_id:
                yield each.settled_ms if each.known.at_ms is None else each.known.at_ms, each.known
