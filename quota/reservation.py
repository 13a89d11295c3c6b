"""How is room taken in advance, and what becomes of it? The promise of the limits, whoever keeps it.

`quota.memory` keeps it inside one process, `quota.redis` for all workers; one contract suite runs over both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import Charges

SEQUENCES_A_MILLISECOND = 1_000_000


class Claim(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A request that asks to be admitted under all its limits, all or none.

    `amounts` is what to take in each unit; where there is less room, as little as `least` will do. `admission` is kept
    beside the reservation, untouched, for whoever settles it. The concurrency slots are held for `lease_ms` and as
    long after each renewal. `stage` is what the request is once room is taken, and `event` what the log of its shard is
    then told; empty for nothing.
    """

    organization_id: str
    tenant_id: str
    request_id: str
    limits: AppliedLimits
    amounts: Charges
    least: Charges
    admission: bytes
    lease_ms: int
    stage: str = ""
    event: bytes = b""


class Standing(NamedTuple):
    """How a counter stands, in the unit of its limit.

    `used` is all that its window holds, `reserved` of it what running requests have taken in advance. After `reset_ms`
    the window is empty if nothing more is taken; 0 for slots, which come back when requests end, and when it is empty.
    """

    used: int
    reserved: int
    reset_ms: int


class Reservation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Room was taken: `taken[i]` under the i-th limit, which then stands at `standings[i]`.

    `at_ms` is the store's clock, milliseconds since the epoch. `shadowed` are the limits in shadow mode that would have
    refused, by index. For a request that has ended, all three are empty.
    """

    at_ms: int
    taken: tuple[int, ...]
    standings: tuple[Standing, ...]
    shadowed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceeded:
    """No room, and nothing was taken. `retry_after_ms` is None when the demand can never fit.

    Of all limits that refuse it names the one of the highest priority; of these one that can never fit, then the one
    that holds longest. `used` and `demanded` are under that limit; `standings` are of all limits of the claim.
    """

    limit: AppliedLimit
    used: int
    demanded: int
    retry_after_ms: int | None
    standings: tuple[Standing, ...]


class Settlement(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The fact that replaces a reservation.

    `charges` is what it really counts for. `ending` joins the event for the ledger. `admission` is the settler's own
    copy of `Claim.admission`: it may know more, and outlives a store that has lost the reservation; without one, an
    unknown request is left alone. With `only_if_overdue` a request whose lease still runs is left alone. `progress` is
    the last step: a request in a stage that it may not follow is left alone.
    """

    organization_id: str
    tenant_id: str
    request_id: str
    charges: Charges
    ending: bytes
    progress: "Progress"
    admission: bytes | None = None
    only_if_overdue: bool = False


class Progress(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """How far a request has come: `stage`, which only one of `after` may precede, and so many `events` of its answer.

    `event` is what the log of its shard is told when the stage is new; empty for nothing.
    """

    stage: str
    after: tuple[str, ...]
    events: int = 0
    event: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A request as the store knows it: open, or settled and not yet safe in the ledger.

    `at_ms` is when room was taken, by the store's clock; None when it was settled without a reservation. `ending` is
    what it was settled with, None while it is open. `stopping` is why it is to be stopped, empty when it is not.
    `step` is the event of the last sign of life that told a new stage; empty without one.
    """

    request_id: str
    admission: bytes
    stage: str
    events: int
    at_ms: int | None
    ending: bytes | None = None
    stopping: str = ""
    step: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A request whose lease has run out: nobody reports it any more. `events` is the last progress reported.

    `stopping` is why it was to be stopped, empty when it was not.
    """

    request_id: str
    admission: bytes
    events: int
    stopping: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledEvent:
    """An entry of the event stream: one request's admission and ending. `id` names it for `acknowledge`.

    `reserved_ms` is when its room was taken, by the store's clock; None when the store knew of no reservation, so that
    no counter holds what the request used.
    """

    id: str
    shard: int
    admission: bytes
    ending: bytes
    reserved_ms: int | None

    @property
    def sequence(self) -> int:
        """Its place among the events of its shard, as one number."""
        return sequence_of(self.id)


def sequence_of(event_id: str) -> int:
    """The id of an event in its stream, milliseconds and a number, as one number."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds) * SEQUENCES_A_MILLISECOND + int(number)


class QuotaOutage(Exception):
    """The limits cannot be asked now. Whether a pending call took effect is unknown."""


class Reservations(Protocol):
    """Takes room, gives it back, settles it. Every method is atomic and idempotent by request id.

    Each raises `QuotaOutage` when the store cannot be asked.
    """

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """Take room under every limit, or under none. Asked again for the same request, answers the same.

        For a request that has ended it takes nothing.
        """

    async def settle(self, settlement: Settlement) -> bool:
        """End a request: free its slots, put the fact in place of its reservation, append the event.

        True for the one call that did it, False for every other.
        """

    async def release(self, organization_id: str, request_id: str) -> bool:
        """Undo a reservation as if it had never been: no event. True when there was one.

        When there is none, one that comes within a minute takes nothing: it was sent before.
        """

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, progress: Progress) -> str | None:
        """A request is alive: extend its lease and note its progress.

        Says why the request is to be stopped, empty when it is not; None when it is not open. A stage that the present
        one may not precede changes nothing but the lease and the events.
        """

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        """Note on an open request that it is to be stopped; the first reason stays. False when it is not open."""

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        """The request, open or settled a short while ago; None when only the ledger may know it."""

    async def open_of(self, organization_id: str, tenant_id: str, *, limit: int) -> list[Known]:
        """Up to `limit` requests of the tenant that the store knows and the ledger may not, the latest first."""

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        """For each (organization id, request id), the last events reported; None when it is not open."""

    async def overdue(self, *, limit: int) -> list[Overdue]:
        """Up to `limit` requests whose lease has run out."""

    async def standings(self, organization_id: str, limits: AppliedLimits) -> tuple[Standing, ...]:
        """How each limit's counter stands now."""


class SettledEvents(Protocol):
    """The stream of settled requests, for the ledger. At least once: an entry comes again until acknowledged."""

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """The next entries, oldest first; waits up to `wait_ms` for the first."""

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """These are safe elsewhere: forget them."""
