"""How do the counters in Redis stay what the ledger says? Rebuilt when they are lost, compared and repaired else.

It runs beside the ledger writer. A shard whose epoch is gone, on a new Redis or after a flush, admits nothing until its
counters are the ledger's again. Several may do this at once: each repair shows the token of its cut, and of two by the
same cut only one is made.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from quota.drift import Drift, Watched
from quota.redis import SHARDS, shard_of
from quota.redis_repair import RedisRepair
from quota.reservation import QuotaOutage
from sidecar.comparison import Comparison, Comparisons, LedgerBehind, Scope
from store import counters as stored
from store.consumption import Owner
from store.database import DatabaseOutage, Pool

_LOOK_SECONDS = 0.2
# Soon after a rebuild or an outage: what another ledger writer had in hand then has come, and a Redis that was put in
# the place of another may lack what came last.
_SOON_SECONDS = 5.0
EVERY_SECONDS = 600.0
"""How often all counters are compared, when nothing has happened."""
# Redis does nothing else while it reads a cut: so many counters take it some milliseconds.
_COUNTERS_AT_ONCE = 200
# The limits of what else changes hold for many tenants.
_OF_MANY = frozenset({"organizations", "plans", "*"})
_CHANGES_SECONDS = 1.0
_MOST_TRIES = 5
_CHANGED = "the counters of shard {shard} are repaired by others again and again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """Shards whose counters were lost are whole again: so many counters, off by `units` units."""

    shards: int
    counters: int
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """Counters that had drifted were made right."""

    drifts: tuple[Drift, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalled:
    """Nothing can be compared or rebuilt now; it goes on by itself."""

    reason: str


Event = Rebuilt | Repaired | Stalled


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a comparison found: counters that are off, whether they have been repaired, and how many were compared.

    `lost` are shards whose counters were not whole.
    """

    drifts: tuple[Drift, ...]
    repaired: bool
    compared: int
    lost: tuple[int, ...] = ()


class Reconciler:
    """Rebuilds and repairs counters. `observe` is told what it did, `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        repair: RedisRepair,
        comparisons: Comparisons,
        pool: Pool,
        *,
        observe: Callable[[Event], None],
        now: Callable[[], float],
    ) -> None:
        self._repair = repair
        self._comparisons = comparisons
        self._pool = pool
        self._observe = observe
        self._now = now
        self._next_check = now() + _SOON_SECONDS
        self._changed: set[str] = set()
        self._next_look = now()

    def announce(self, change: str | None) -> None:
        """Take in a change of any table (`table:id:version`). What a limit or a time zone counts may be new by it."""
        table, _, rest = (change or "").partition(":")
        if table == "tenants":
            self._changed.add(rest.rpartition(":")[0])
        elif table in _OF_MANY or change is None:
            self._next_check = min(self._next_check, self._now() + _SOON_SECONDS)

    async def run(self) -> None:
        """Keep the counters right until cancelled; an outage is waited out.

        What is lost is looked for beside a comparison, which may take long: nobody is admitted until it is rebuilt.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again_and_again(self.rebuild_lost))
            group.create_task(self._again_and_again(self.compare_due))

    async def _again_and_again(self, work: Callable[[], Awaitable[None]]) -> None:
        stalled = False
        while True:
            try:
                await work()
                stalled = False
            except (QuotaOutage, DatabaseOutage, LedgerBehind) as outage:
                if not stalled:
                    self._observe(Stalled(reason=str(outage)))
                stalled = True
                self._next_check = self._now() + _SOON_SECONDS
            await asyncio.sleep(_LOOK_SECONDS)

    async def step(self) -> None:
        """Rebuild what is lost; compare what is due."""
        await self.rebuild_lost()
        await self.compare_due()

    async def rebuild_lost(self) -> None:
        """Rebuild the shards whose counters are lost."""
        if lost := await self._repair.lost():
            await self.rebuild(lost)
            self._next_check = self._now() + _SOON_SECONDS

    async def compare_due(self) -> None:
        """Compare everything when it is time to, or a tenant that has changed."""
        if self._now() >= self._next_check:
            self._changed.clear()
            await self.check(repair=True)
            self._next_check = self._now() + EVERY_SECONDS
        elif self._changed and self._now() >= self._next_look:
            self._next_look = self._now() + _CHANGES_SECONDS
            await self.check(repair=True, tenant_id=self._changed.pop())

    async def rebuild(self, shards: Iterable[int]) -> None:
        """Set the counters of the shards by the ledger, and let them admit again."""
        scopes = await self._scopes()
        found = await _all(self._rebuild(scopes[shard]) for shard in shards)
        whole = _together(found)
        missing = sum(abs(drift.difference) for drift in whole.drifts)
        self._observe(Rebuilt(shards=len(found), counters=whole.compared, units=missing))

    async def check(self, *, repair: bool, tenant_id: str | None = None) -> Report:
        """Compare all counters, or those that a tenant's requests are counted on; with `repair`, make them right."""
        lost = await self._repair.lost()
        scopes = [scope for scope in (await self._scopes()).values() if tenant_id in (None, *_ids(scope.tenants))]
        found: list[Report] = []
        for scope in scopes:
            if repair and scope.shard in lost:
                found.append(await self._rebuild(scope))
            else:
                found += await self._check(scope, tenant_id, repair=repair)
        report = _together(found)
        if repair and report.drifts:
            self._observe(Repaired(drifts=report.drifts))
        return replace(report, lost=() if repair else tuple(lost))

    async def _rebuild(self, scope: Scope) -> Report:
        for _ in range(_MOST_TRIES):
            comparison = await self._comparisons.all(scope)
            if comparison.cut.whole:  # another was faster
                return _report(comparison, repaired=True)
            if await self._repair.repair(comparison.cut, comparison.corrections, whole=True):
                return _report(comparison, repaired=True)
        raise QuotaOutage(_CHANGED.format(shard=scope.shard))

    async def _check(self, scope: Scope, tenant_id: str | None, *, repair: bool) -> list[Report]:
        if not scope.tenants:
            return []
        now_ms = (await self._repair.cut(scope.shard, ())).at_ms
        asked = replace(scope, tenants=[each for each in scope.tenants if tenant_id in (None, each.id)])
        counters = sorted(await self._comparisons.counters(asked, now_ms=now_ms), key=_place)
        parts = [counters[at : at + _COUNTERS_AT_ONCE] for at in range(0, len(counters), _COUNTERS_AT_ONCE)]
        return [await self._check_some(scope, part, repair=repair) for part in parts]

    async def _check_some(self, scope: Scope, counters: Sequence[Watched], *, repair: bool) -> Report:
        owners = {each.organization_id for each in counters}
        part = replace(scope, tenants=[each for each in scope.tenants if each.organization_id in owners])
        for _ in range(_MOST_TRIES):
            comparison = await self._comparisons.some(part, counters)
            if not comparison.drifts or not repair:
                return _report(comparison, repaired=not comparison.drifts)
            if await self._repair.repair(comparison.cut, comparison.corrections):
                return _report(comparison, repaired=True)
        raise QuotaOutage(_CHANGED.format(shard=scope.shard))

    async def _scopes(self) -> dict[int, Scope]:
        """What there is to compare, by shard."""
        known = await stored.load(self._pool)
        tenants: dict[int, list[Owner]] = defaultdict(list)
        for tenant in known.tenants.values():
            tenants[shard_of(tenant.organization_id)].append(tenant)
        return {shard: Scope(shard, tuple(tenants[shard]), known) for shard in range(SHARDS)}


async def _all(work: Iterable[Awaitable[Report]]) -> list[Report]:
    """The outcomes; when one fails, after the others: the shards of a cluster are not all away at once."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Report)]


def _report(comparison: Comparison, *, repaired: bool) -> Report:
    return Report(drifts=comparison.drifts, repaired=repaired, compared=comparison.compared)


def _together(reports: Sequence[Report]) -> Report:
    return Report(
        drifts=tuple(drift for report in reports for drift in report.drifts),
        repaired=all(report.repaired for report in reports),
        compared=sum(report.compared for report in reports),
    )


def _ids(tenants: Iterable[Owner]) -> Iterable[str]:
    return (tenant.id for tenant in tenants)


def _place(counter: Watched) -> tuple[str, str]:
    return counter.organization_id, counter.name
