"""What do the counters of a shard hold, and what should they, by the ledger? Compared at one moment, under full load.

A cut tells what had been settled when it was made. The ledger is summed when it has all of that, and up to there: the
two accounts are of the same requests, however many were admitted, settled or charged meanwhile.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from quota.drift import Correction, Drift, Period, Watched, bucket_level, compare, live_slices, span_at
from quota.redis_repair import Cut, RedisRepair
from store.consumption import EVERYTHING, Owner, Settled, Use, uses
from store.counters import Counters
from store.database import Pool

LEDGER_SECONDS = 60.0
"""How long the ledger is waited for."""
_LOOK_SECONDS = 0.02
# What is summed may be counted on counters that the cut did not read: principals and models may be new.
_MOST_CUTS = 5

_Watching = dict[str, Watched]  # by the counter's name
_Slices = Mapping[int, int]
_NOTHING: _Slices = {}


class LedgerBehind(Exception):
    """The ledger did not get what was settled in time: nobody writes it, or it cannot be written."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What is compared together: tenants of a shard, and the counters they may have."""

    shard: int
    tenants: Sequence[Owner]
    counters: Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Counters of a shard at a cut: those that are off, what makes them right, and how many were compared."""

    cut: Cut
    drifts: tuple[Drift, ...]
    corrections: tuple[Correction, ...]
    compared: int


async def nothing_in_hand() -> None:
    """Nobody in this process writes the ledger."""


class Comparisons:
    """Compares counters with the ledger. Raises `QuotaOutage`, `DatabaseOutage` and `LedgerBehind`.

    `in_hand` waits until what a ledger writer of this process has read before is written: after a flush, Redis does not
    know of it any more.
    """

    def __init__(
        self,
        repair: RedisRepair,
        pool: Pool,
        *,
        in_hand: Callable[[], Awaitable[None]] = nothing_in_hand,
        ledger_seconds: float = LEDGER_SECONDS,
    ) -> None:
        self._repair = repair
        self._pool = pool
        self._in_hand = in_hand
        self._ledger_seconds = ledger_seconds

    async def counters(self, scope: Scope, *, now_ms: int) -> list[Watched]:
        """The counters that the tenants have, used or not, or have used in the windows of now."""
        found = self._unused(scope)
        for _, use in await self._uses(scope, _periods(scope), now_ms, EVERYTHING):
            _add(found, scope.counters.of_use(use))
        return list(found.values())

    async def some(self, scope: Scope, counters: Iterable[Watched]) -> Comparison:
        """Compare these counters."""
        watching = _add({}, counters)
        periods = {each.period for each in watching.values()}
        cut = await self._cut(scope, watching)
        ledger, _ = await self._summed(scope, periods, cut)
        return _compared(cut, watching, ledger)

    async def all(self, scope: Scope) -> Comparison:
        """Compare all counters of the tenants; what makes them right fills empty buckets too."""
        watching = self._unused(scope)
        for _ in range(_MOST_CUTS):
            cut = await self._cut(scope, watching)
            ledger, met = await self._summed(scope, _periods(scope), cut)
            if met.keys() <= watching.keys():
                break
            watching |= met
        return _with_levels(_compared(cut, watching, ledger), watching, ledger)

    def _unused(self, scope: Scope) -> _Watching:
        found: _Watching = {}
        for tenant in scope.tenants:
            if tenant.live:
                _add(found, scope.counters.unused(tenant))
        return found

    async def _cut(self, scope: Scope, watching: _Watching) -> Cut:
        cut = await self._repair.cut(scope.shard, list(watching))
        await self._wait_for_ledger(cut)
        return cut

    async def _wait_for_ledger(self, cut: Cut) -> None:
        try:
            async with asyncio.timeout(self._ledger_seconds):
                while not await self._repair.in_ledger(cut):  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(_LOOK_SECONDS)
                await self._in_hand()
        except TimeoutError as error:
            raise LedgerBehind(
                f"the ledger has not got all that was settled within {self._ledger_seconds:g} s"
            ) from error

    async def _summed(self, scope: Scope, periods: set[Period], cut: Cut) -> tuple[dict[str, _Slices], _Watching]:
        """What each counter should hold by slice, and the counters themselves."""
        settled = Settled(sequence=cut.sequence, without=await self._repair.charged_since(cut))
        sums: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        met: _Watching = {}
        for period, use in await self._uses(scope, periods, cut.at_ms, settled):
            for counter in scope.counters.of_use(use):
                if counter.period == period:
                    sums[counter.name][use.slice] += use.charges.of(counter.limit.unit)
                    met[counter.name] = counter
        return dict(sums), met

    async def _uses(
        self, scope: Scope, periods: set[Period], now_ms: int, settled: Settled
    ) -> list[tuple[Period, Use]]:
        found: list[tuple[Period, Use]] = []
        for period in sorted(periods):
            tenants = [tenant.id for tenant in scope.tenants if period in scope.counters.periods(tenant)]
            if tenants:
                rows = await uses(self._pool, tenants, span_at(period, now_ms), settled)
                found += [(period, use) for use in rows]
        return found


def _add(watching: _Watching, counters: Iterable[Watched]) -> _Watching:
    for each in counters:
        watching.setdefault(each.name, each)
    return watching


def _periods(scope: Scope) -> set[Period]:
    return {period for tenant in scope.tenants for period in scope.counters.periods(tenant)}


def _compared(cut: Cut, watching: _Watching, ledger: Mapping[str, _Slices]) -> Comparison:
    drifts: list[Drift] = []
    corrections: list[Correction] = []
    for (name, counter), held in zip(watching.items(), cut.held, strict=True):
        drift, wanted = compare(counter, held, ledger.get(name, _NOTHING), cut.at_ms)
        if wanted:
            drifts.append(drift)
            corrections += wanted
    return Comparison(cut=cut, drifts=tuple(drifts), corrections=tuple(corrections), compared=len(watching))


def _with_levels(comparison: Comparison, watching: _Watching, ledger: Mapping[str, _Slices]) -> Comparison:
    levels = {}
    for name in {each.counter for each in comparison.corrections}:
        limit, period, held = watching[name].limit, watching[name].period, ledger.get(name, _NOTHING)
        if limit.burst:
            taken = [(place, held.get(place.number, 0)) for place in live_slices(period, comparison.cut.at_ms)]
            levels[name] = bucket_level(limit, taken, comparison.cut.at_ms)
    leveled = tuple(replace(each, level=levels.get(each.counter, 0)) for each in comparison.corrections)
    return replace(comparison, corrections=leveled)
