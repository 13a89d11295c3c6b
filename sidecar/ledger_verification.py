"""Does the ledger say what happened? Its rows by themselves, and their sums against what Redis counted at each end.

The script that ends a request counts it, and what it was charged, in the same step: a row that is missing, doubled or
changed shows as a difference of its shard and day. What cannot be compared is said so, and never called right.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from quota.ledger_backlog import LedgerBacklog
from quota.redis import SHARDS, shard_of
from quota.redis_tally import RedisTally, Tally
from store import ledger_check
from store.database import Pool
from store.ledger_check import OddRow, SettledSum

TALLIED_DAYS = 40
"""For how long Redis keeps what it counted (quota/lua/settle.lua)."""
_MOST_TRIES = 5
_TRY_AGAIN_SECONDS = 0.2

_Place = tuple[int, date]  # shard and day
_NOTHING = Tally(rows=0, requests=0, tokens=0, cost=0)


class Unknown(StrEnum):
    """Why a day of a shard cannot be compared."""

    WAITING = "events of it wait for the ledger"
    MOVING = "requests were settled meanwhile"
    FORGOTTEN = "Redis does not remember it"
    PARTIAL = "Redis remembers only its later part"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedDay:
    """What was settled in a shard on a day, by both accounts. Only without `unknown` do they say anything together."""

    shard: int
    day: date
    redis: Tally
    ledger: Tally
    unknown: Unknown | None = None

    @property
    def differs(self) -> bool:
        """Whether the accounts contradict each other."""
        return self.unknown is None and self.redis != self.ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found: requests with several rows, rows that cannot be, and the days of all shards, in their order."""

    twice: tuple[str, ...]
    odd: tuple[OddRow, ...]
    days: tuple[ComparedDay, ...]

    @property
    def differences(self) -> tuple[ComparedDay, ...]:
        """The days on which the ledger is not what was settled."""
        return tuple(each for each in self.days if each.differs)

    @property
    def right(self) -> bool:
        """Whether nothing was found that is wrong."""
        return not (self.twice or self.odd or self.differences)


class LedgerVerification:
    """Verifies the ledger, while it is written. Raises `DatabaseOutage` and `QuotaOutage`."""

    def __init__(self, pool: Pool, tallies: RedisTally, backlog: LedgerBacklog) -> None:
        self._pool = pool
        self._tallies = tallies
        self._backlog = backlog

    async def verify(self, *, since: datetime, now: datetime) -> Verification:
        """Verify what was received since then; by day, what was settled since its day, as far as Redis remembers."""
        first = max(since.astimezone(UTC).date(), now.date() - timedelta(days=TALLIED_DAYS))
        return Verification(
            twice=tuple(await ledger_check.twice(self._pool, since=since)),
            odd=tuple(await ledger_check.odd(self._pool, since=since)),
            days=tuple(await self._compared(first, now.date() + timedelta(days=1))),
        )

    async def _compared(self, first: date, last: date) -> list[ComparedDay]:
        for _ in range(_MOST_TRIES):
            found = await self._look(first, last)
            if not {Unknown.WAITING, Unknown.MOVING} & {each.unknown for each in found}:
                break
            await asyncio.sleep(_TRY_AGAIN_SECONDS)
        return found

    async def _look(self, first: date, last: date) -> list[ComparedDay]:
        """Compare once. A row is committed before its event is gone, and its event is there before it is counted.

        So what Redis had counted before the look at the events that wait, and waits no more, is summed; and nothing
        else is when Redis counts the same afterwards.
        """
        days = [first + timedelta(days=distance) for distance in range((last - first).days + 1)]
        before = await self._counted(days)
        waiting = {each.shard: _day(each.oldest_ms) for each in await self._backlog.waiting()}
        sums = _by_shard(await ledger_check.settled(self._pool, first, last))
        after = await self._counted(days)
        found = []
        for shard, day in sorted({*after, *sums}, key=lambda place: (place[1], place[0])):
            counted, summed = after.get((shard, day)), sums.get((shard, day))
            oldest = waiting[shard]
            if oldest is not None and oldest <= day:
                unknown: Unknown | None = Unknown.WAITING
            elif before.get((shard, day)) != counted:
                unknown = Unknown.MOVING
            else:
                unknown = _why_unknown(counted, summed)
            found.append(
                ComparedDay(shard=shard, day=day, redis=counted or _NOTHING, ledger=summed or _NOTHING, unknown=unknown)
            )
        return found

    async def _counted(self, days: Sequence[date]) -> dict[_Place, Tally]:
        places = [(shard, day) for shard in range(SHARDS) for day in days]
        found = await asyncio.gather(*(self._tallies.of(shard, day) for shard, day in places))
        return {place: tally for place, tally in zip(places, found, strict=True) if tally is not None}


def _why_unknown(counted: Tally | None, summed: Tally | None) -> Unknown | None:
    if counted is None:
        return Unknown.FORGOTTEN
    return Unknown.PARTIAL if summed is not None and summed.since < counted.since else None


def _by_shard(sums: Iterable[SettledSum]) -> Mapping[_Place, Tally]:
    found: dict[_Place, Tally] = {}
    for each in sums:
        place = (shard_of(each.organization_id), each.day)
        known = found.get(place, Tally(rows=0, requests=0, tokens=0, cost=0, since=each.first))
        found[place] = Tally(
            rows=known.rows + each.rows,
            requests=known.requests + each.requests,
            tokens=known.tokens + each.tokens,
            cost=known.cost + each.cost,
            since=min(known.since, each.first),
        )
    return found


def _day(ms: int | None) -> date | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).date()
