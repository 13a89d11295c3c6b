"""Which months does the ledger hold, each in a partition of its own? Made ahead, listed, and dropped as a whole.

The month of a row is that of its receipt, in UTC. What no month holds is in the default partition, until its month is
made. The work is done by functions of the database (revision 0005), so that whoever writes the ledger need not own it.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, date, datetime

from store.database import Pool, outages_named

AHEAD = 2
"""How many months beyond the current one are made."""
# Making one, or dropping one, waits for what reads the ledger; meanwhile nothing else gets in. Rather later.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '3s'"
_CHANGE_SECONDS = 120.0  # many strays may have to move
# Strays are of a clock that was wrong, and of few months; what else is there waits for the next time.
_STRAYS = """
SELECT DISTINCT date_trunc('month', received_at AT TIME ZONE 'UTC')::date AS month FROM inference_requests_default
WHERE received_at >= '1970-01-01Z' AND received_at < $1 ORDER BY 1 LIMIT 12"""
_LIST = """
SELECT c.relname AS name, greatest(c.reltuples, 0)::bigint AS rows, pg_total_relation_size(c.oid) AS bytes,
       to_date(substring(c.relname FROM '^inference_requests_([0-9]{4}_[0-9]{2})$'), 'YYYY_MM') AS month
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'inference_requests'::regclass ORDER BY month NULLS LAST"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition: `month` is its first day, None for the default one; `rows` as estimated when last analyzed."""

    name: str
    month: date | None
    rows: int
    bytes: int

    @property
    def until(self) -> date | None:
        """The first day that is not in it."""
        return None if self.month is None else months_later(self.month, 1)


async def ensure(pool: Pool, *, now: datetime, ahead: int = AHEAD) -> list[date]:
    """Make the partitions of this month, of the next ones, and of strays; returns the months that were made.

    Safe to repeat, and for several at once. Raises `DatabaseOutage`; what was made by then stays.
    """
    current = _month_of(now)
    wanted = [months_later(current, distance) for distance in range(ahead + 1)]
    with outages_named():
        strays = await pool.fetch(_STRAYS, _start(months_later(current, ahead + 1)))
    months = sorted({*wanted, *(row["month"] for row in strays)})
    return [month for month in months if await _change(pool, "SELECT ensure_ledger_partition($1)", month)]


async def drop_before(pool: Pool, month: date) -> AsyncGenerator[date, None]:
    """Drop the partitions of all months before this one, oldest first, with their rows; says each that is gone.

    Raises `DatabaseOutage`, also for one of the two months before the current one: the database keeps those.
    """
    found = [each.month for each in await partitions(pool) if each.month is not None and each.month < month]
    for each in found:
        if await _change(pool, "SELECT drop_ledger_partition($1)", each):
            yield each


async def partitions(pool: Pool) -> list[Partition]:
    """All partitions, the oldest first and the default one last. Raises `DatabaseOutage`."""
    with outages_named():
        return [Partition(**row) for row in await pool.fetch(_LIST)]


def months_later(month: date, count: int) -> date:
    """The first day of the month so many months after, or before, this one."""
    index = month.year * 12 + month.month - 1 + count
    return date(index // 12, index % 12 + 1, 1)


def oldest_kept(now: datetime, months: int) -> date:
    """The first month that stays when the current one and so many whole ones before it are kept."""
    return months_later(_month_of(now), -months)


async def _change(pool: Pool, statement: str, month: date) -> bool:
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_LOCK_TIMEOUT)
            return bool(await connection.fetchval(statement, month, timeout=_CHANGE_SECONDS))


def _month_of(time: datetime) -> date:
    return time.astimezone(UTC).date().replace(day=1)


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)
