"""What would these limits have refused? Requests of the past, replayed against limits in memory, by their own times.

Each takes at its admission what it reserved then, holds its slots as long as it ran, and is settled by the facts at its
end. One that is refused takes nothing, and is not tried again.
"""

import heapq
from collections import Counter
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from quota.applied import AppliedLimit, AppliedLimits, Target, applied
from quota.charges import Charges
from quota.limit import Dimension, Limit
from quota.memory import MemoryReservations
from quota.reservation import Claim, Exceeded, Progress, Reservation, Settlement, Standing

MOST_CALLERS = 10
"""How many callers are named for a limit."""
# Models are named by callers: there may be any number of them.
_MOST_COUNTED = 1000
_REMEMBERED_TARGETS = 10_000
_SETTLED_TOGETHER = 1000
_SETTLED = Progress(stage="", after=())  # no stage is simulated

Carriers: TypeAlias = Callable[[Target], Iterable[tuple[Dimension, Iterable[Limit]]]]
"""The limits that each owner of a request carries, as `quota.applied.applied` takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastRequest:
    """A request of the past. Times are milliseconds since the epoch.

    `asked` is what it reserved in each unit, `least` what it would have made do with where there was less room, and
    `settled` what it counted for in the end.
    """

    request_id: str
    admitted_ms: int
    ended_ms: int
    target: Target
    asked: Charges
    least: Charges
    settled: Charges


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCaller:
    """How many requests of a principal for a model a limit refused."""

    principal_id: str
    model: str
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOutcome:
    """What one limit would have done. Times are milliseconds since the epoch, None when it refused nothing.

    `owner` is whom it is counted for. It held for `requests`; `refused` are those that it is named for, and of a limit
    in shadow mode those that it would have refused. `peak` is the most that one of its counters held, the one of
    `peak_subject`. `callers` are those of whom most was refused, `others` what was refused to all others.
    """

    limit: Limit
    owner: Dimension
    requests: int
    refused: int
    first_ms: int | None
    last_ms: int | None
    peak: int
    peak_subject: str
    callers: tuple[RefusedCaller, ...]
    others: int

    @property
    def share(self) -> float:
        """The part of the requests it held for that was refused, 0 to 1."""
        return self.refused / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the limits would have done in the period: how many requests there were, and how many were refused.

    What a limit in shadow mode would have refused is not among `refused`.
    """

    requests: int
    refused: int
    limits: tuple[LimitOutcome, ...]


async def simulate(requests: AsyncIterable[PastRequest], carriers: Carriers, *, counted_from_ms: int = 0) -> Report:
    """Replay the requests, which come in the order of their admission.

    Those before `counted_from_ms` only fill the windows: they take room and are not in the report.
    """
    simulation = _Simulation(carriers, counted_from_ms)
    async for request in requests:
        await simulation.admit(request)
    await simulation.finish()
    return simulation.report()


class _Running(NamedTuple):
    """A request that holds room. Ordered by its end, then by its admission."""

    ended_ms: int
    number: int
    request: PastRequest
    limits: AppliedLimits
    taken: tuple[int, ...]


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    refused: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    peak: int = 0
    peak_subject: str = ""
    callers: Counter[tuple[str, str]] = field(default_factory=Counter)

    def refuse(self, request: PastRequest) -> None:
        self.refused += 1
        self.first_ms = request.admitted_ms if self.first_ms is None else self.first_ms
        self.last_ms = request.admitted_ms
        caller = (request.target.principal_id, request.target.model)
        if caller in self.callers or len(self.callers) < _MOST_COUNTED:
            self.callers[caller] += 1

    def stand(self, subject: str, used: int) -> None:
        if used > self.peak:
            self.peak, self.peak_subject = used, subject


class _Simulation:
    def __init__(self, carriers: Carriers, counted_from_ms: int) -> None:
        self._applied = lru_cache(maxsize=_REMEMBERED_TARGETS)(lambda target: applied(carriers(target), target))
        self._counted_from_ms = counted_from_ms
        self._now_ms = 0
        self._reservations = MemoryReservations(lambda: self._now_ms)
        self._running: list[_Running] = []
        self._tallies: dict[tuple[Limit, Dimension], _Tally] = {}
        self._number = 0
        self._requests = 0
        self._refused = 0

    async def admit(self, request: PastRequest) -> None:
        """Take room for a request, once all that ended before it has given back its own."""
        await self._pass_until(request.admitted_ms)
        limits = self._applied(request.target)
        answer = await self._reservations.reserve(_claim(request, limits))
        if isinstance(answer, Reservation):
            self._run(request, limits, answer)
        if request.admitted_ms >= self._counted_from_ms:
            self._count(request, limits, answer)

    async def finish(self) -> None:
        """Let end what still runs."""
        while self._running:
            await self._pass_until(self._running[0].ended_ms)

    def report(self) -> Report:
        """What has been counted."""
        outcomes = (_outcome(limit, owner, tally) for (limit, owner), tally in self._tallies.items())
        return Report(requests=self._requests, refused=self._refused, limits=tuple(outcomes))

    async def _pass_until(self, ms: int) -> None:
        # What ends in the same millisecond as another begins makes room for it.
        while self._running and self._running[0].ended_ms <= ms:
            ended = heapq.heappop(self._running)
            self._now_ms = max(self._now_ms, ended.ended_ms)
            await self._settle(ended)
        self._now_ms = max(self._now_ms, ms)

    async def _settle(self, ended: _Running) -> None:
        request = ended.request
        organization_id = request.target.organization_id
        settled = Settlement(
            organization_id=organization_id,
            tenant_id=request.target.tenant_id,
            request_id=request.request_id,
            charges=request.settled,
            ending=b"",
            progress=_SETTLED,
        )
        await self._reservations.settle(settled)
        await self._reservations.acknowledge(await self._reservations.read(count=_SETTLED_TOGETHER, wait_ms=0))
        facts = (request.settled.of(each.limit.unit) for each in ended.limits.limits)
        if self._now_ms >= self._counted_from_ms and any(map(int.__gt__, facts, ended.taken)):
            self._stand(ended.limits, await self._reservations.standings(organization_id, ended.limits))

    def _run(self, request: PastRequest, limits: AppliedLimits, answer: Reservation) -> None:
        self._number += 1
        ended_ms = max(request.ended_ms, request.admitted_ms)  # of two clocks that do not agree
        heapq.heappush(self._running, _Running(ended_ms, self._number, request, limits, answer.taken))

    def _count(self, request: PastRequest, limits: AppliedLimits, answer: Reservation | Exceeded) -> None:
        self._requests += 1
        for each in limits.limits:
            self._tally(each).requests += 1
        self._stand(limits, answer.standings)
        if isinstance(answer, Exceeded):
            self._refused += 1
            self._tally(answer.limit).refuse(request)
            return
        for index in answer.shadowed:
            self._tally(limits.limits[index]).refuse(request)

    def _stand(self, limits: AppliedLimits, standings: Sequence[Standing]) -> None:
        for each, standing in zip(limits.limits, standings, strict=True):
            self._tally(each).stand(each.subject, standing.used)

    def _tally(self, limit: AppliedLimit) -> _Tally:
        # A subject begins with the widest owner that the limit is counted for.
        owner = Dimension(limit.subject.partition(":")[0])
        return self._tallies.setdefault((limit.limit, owner), _Tally())


def _claim(request: PastRequest, limits: AppliedLimits) -> Claim:
    return Claim(
        organization_id=request.target.organization_id,
        tenant_id=request.target.tenant_id,
        request_id=request.request_id,
        limits=limits,
        amounts=request.asked,
        least=request.least,
        admission=b"",
        lease_ms=max(request.ended_ms - request.admitted_ms, 0) + 1,
    )


def _outcome(limit: Limit, owner: Dimension, tally: _Tally) -> LimitOutcome:
    most = sorted(tally.callers.items(), key=lambda item: (-item[1], item[0]))[:MOST_CALLERS]
    callers = tuple(
        RefusedCaller(principal_id=principal, model=model, requests=count) for (principal, model), count in most
    )
    return LimitOutcome(
        limit=limit,
        owner=owner,
        requests=tally.requests,
        refused=tally.refused,
        first_ms=tally.first_ms,
        last_ms=tally.last_ms,
        peak=tally.peak,
        peak_subject=tally.peak_subject,
        callers=callers,
        others=tally.refused - sum(each.requests for each in callers),
    )
