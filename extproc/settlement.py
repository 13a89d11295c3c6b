"""How is every admitted request settled exactly once, though its worker, Redis or the log entry may be gone?

Whoever learns of an end settles it, idempotently by request id: the access log, which knows how it ended; failing
that, a few seconds after the ext_proc stream closed, the worker that admitted it; failing that too, the sweeper, when
the request's lease has run out. A settlement that Redis does not take waits here and is tried again.
"""

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

import msgspec

from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events
from extproc.lifecycle import FINAL, STOPPING, Cause, predecessors
from extproc.record import Admission, Ending
from quota.reservation import Progress, QuotaOutage, Reservations, Settlement

# The access log arrives within milliseconds of the end, and its recorder waits up to 2 s for Redis: a stream that
# closed so long ago has lost its entry. After an outage the grace begins anew, for Redis comes back to all processes
# at once, and whoever knows how a request ended is to say so before it is called lost.
GRACE_SECONDS = 3.0
RETRY_SECONDS = 0.25
# A client that leaves in the midst of its admission is told of before its reservation is made. By then it has been, and
# the grace, which begins after it, has not passed.
LOOK_AGAIN_SECONDS = 2.0
# What waits for Redis is bounded; beyond it the oldest is left to the sweeper.
MAX_WAITING = 100_000
# What a flush, or a failover, can make Redis forget before the ledger has it: that of some seconds, a kilobyte each.
MAX_REMEMBERED = 10_000
_BATCH = 500
_BEFORE = {state: predecessors(state) for state in FINAL}
_T = TypeVar("_T")


class _Closed(msgspec.Struct, frozen=True, gc=False):
    admission: Admission
    closed_at: float
    stopped: Cause | None


class _Operation(msgspec.Struct, frozen=True, gc=False):
    """What is owed to Redis for one request. Without an ending, its reservation is undone."""

    admission: Admission
    ending: Ending | None
    settlement: Settlement | None


class Settler:
    """Settles requests and retries while Redis is away. Its calls return at once; the work is done behind them.

    `now` is a monotonic clock in seconds, `now_ms` milliseconds since the epoch. `observe` is told every settlement
    that this process made.
    """

    def __init__(
        self,
        reservations: Reservations,
        *,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        observe: Callable[[Admission, Ending], None],
    ) -> None:
        self._reservations = reservations
        self._now = now
        self._now_ms = now_ms
        self._observe = observe
        self._closed: OrderedDict[str, _Closed] = OrderedDict()
        self._out_at = -math.inf
        self._waiting: OrderedDict[str, _Operation] = OrderedDict()
        self._unsure: deque[tuple[float, _Operation]] = deque(maxlen=MAX_WAITING)
        self._taken: deque[Settlement] = deque(maxlen=MAX_REMEMBERED)
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """How many settlements Redis has not taken yet."""
        return len(self._waiting)

    def settle(self, admission: Admission, ending: Ending) -> None:
        """Settle a request whose end is known."""
        self._closed.pop(admission.request_id, None)
        self._start(_Operation(admission, ending, settlement(admission, ending)))

    def settle_if_reserved(self, admission: Admission, ending: Ending) -> None:
        """Settle a request that may have been reserved, but was never let pass. Its reservation is looked for twice."""
        operation = _Operation(
            admission, ending, msgspec.structs.replace(settlement(admission, ending), admission=None)
        )
        self._start(operation)
        self._unsure.append((self._now() + LOOK_AGAIN_SECONDS, operation))

    def release(self, admission: Admission) -> None:
        """Undo a reservation whose answer did not come: whether it was made is unknown."""
        self._start(_Operation(admission, None, None))

    def stream_closed(self, admission: Admission, stopped: Cause | None = None) -> None:
        """The ext_proc stream of a request has ended; its access-log entry should come now.

        `stopped` is why the gateway itself has stopped it, if it has.
        """
        _remember(self._closed, admission.request_id, _Closed(admission, self._now(), stopped))

    async def run(self) -> None:
        """Retry what waits and settle what has lost its log entry, until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            await self.tick()

    async def tick(self) -> None:
        """One round of `run`."""
        while self._unsure and self._unsure[0][0] <= self._now():
            self._start(self._unsure.popleft()[1])
        try:
            await self._settle_unlogged()
        except QuotaOutage:
            self._out_at = self._now()
            return
        while self._waiting:
            batch = list(self._waiting.values())[:_BATCH]
            if not all(await asyncio.gather(*(self._attempt(operation) for operation in batch))):
                return

    async def settle_again(self) -> int:
        """Settle once more what was settled last, in a store that may have lost it; returns how much it had lost.

        Raises `QuotaOutage`, after which all may be settled again.
        """
        taken, lost = list(self._taken), 0
        for start in range(0, len(taken), _BATCH):
            lost += sum(await asyncio.gather(*map(self._reservations.settle, taken[start : start + _BATCH])))
        return lost

    async def finish(self) -> None:
        """Wait for what has been started, and try once more what waits."""
        while self._running:
            await asyncio.wait(self._running)
        await self.tick()

    def _start(self, operation: _Operation) -> None:
        task = asyncio.get_running_loop().create_task(self._run(operation))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, operation: _Operation) -> None:
        await self._attempt(operation)

    async def _attempt(self, operation: _Operation) -> bool:
        """Whether Redis took the operation; if not, it waits for the next round."""
        request_id = operation.admission.request_id
        try:
            await self._perform(operation)
        except QuotaOutage:
            self._out_at = self._now()
            _remember(self._waiting, request_id, operation)
            return False
        self._waiting.pop(request_id, None)
        return True

    async def _perform(self, operation: _Operation) -> None:
        admission = operation.admission
        if operation.settlement is None or operation.ending is None:
            await self._reservations.release(admission.organization_id, admission.request_id)
            return
        made = await self._reservations.settle(operation.settlement)
        if operation.settlement.admission is not None:
            self._taken.append(operation.settlement)
        if made:
            self._observe(admission, operation.ending)

    async def _settle_unlogged(self) -> None:
        if not self._closed:
            return
        due = self._due()
        # An outage between two rounds must be seen: when none is due, the oldest is asked for all the same.
        asked = due or [next(iter(self._closed.values()))]
        requests = [(closed.admission.organization_id, closed.admission.request_id) for closed in asked]
        progress = await self._reservations.progress(requests)
        for closed, events in zip(due, progress[: len(due)], strict=True):
            admission = closed.admission
            known = self._closed.pop(admission.request_id, None) is not None
            # What was admitted without the store is not open there either, whether somebody has settled it or not.
            settled = events is None and not admission.degraded
            if known and not settled and admission.request_id not in self._waiting:
                lost = endings.lost(admission, events=events or 0, ended_ms=self._now_ms(), cause=closed.stopped)
                self.settle(admission, lost)

    def _due(self) -> list[_Closed]:
        latest = self._now() - GRACE_SECONDS
        due: list[_Closed] = []
        if self._out_at > latest:
            return due
        for closed in self._closed.values():
            if closed.closed_at > latest or len(due) == _BATCH:
                break
            due.append(closed)
        return due


def _remember(held: OrderedDict[str, _T], request_id: str, value: _T) -> None:
    held[request_id] = value
    if len(held) > MAX_WAITING:
        held.popitem(last=False)


def settlement(admission: Admission, ending: Ending, *, only_if_overdue: bool = False) -> Settlement:
    """What the store is asked to settle."""
    return Settlement(
        organization_id=admission.organization_id,
        tenant_id=admission.tenant_id,
        request_id=admission.request_id,
        charges=ending.charges,
        ending=endings.encode(ending),
        progress=Progress(
            stage=ending.state,
            after=_BEFORE[ending.state],
            events=ending.events,
            event=lifecycle_events.encode(lifecycle_events.ended(admission, ending)),
        ),
        admission=None if only_if_overdue else admissions.encode(admission),
        only_if_overdue=only_if_overdue,
    )


async def sweep(reservations: Reservations, *, now_ms: int) -> list[tuple[Admission, Ending]]:
    """Settle the requests whose lease has run out, and say which."""
    swept = []
    for found in await reservations.overdue(limit=_BATCH):
        admission = admissions.decode(found.admission)
        cause = Cause(found.stopping) if found.stopping in STOPPING else None
        ending = endings.lost(admission, events=found.events, ended_ms=now_ms, cause=cause)
        if await reservations.settle(settlement(admission, ending, only_if_overdue=True)):
            swept.append((admission, ending))
    return swept
