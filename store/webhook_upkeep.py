"""How does the outbox stay small, and how much is in it? What is done goes after some days, the dead ones later."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from store.database import Pool, outages_named

KEPT_DELIVERED = timedelta(days=3)
KEPT_DEAD = timedelta(days=30)
DISABLED = "the webhook is disabled"
_BATCH = 5000
_OF_EACH = 1000
_COUNTED_AT_MOST = 100_000

_OLD = """
DELETE FROM webhook_deliveries d USING (
    SELECT o.webhook_id, o.request_id FROM webhooks w CROSS JOIN LATERAL (
        SELECT webhook_id, request_id FROM webhook_deliveries
        WHERE webhook_id = w.id AND queued_at < $1 AND (delivered_at < $1 OR dead_at < $2)
        ORDER BY queued_at LIMIT $4) o
    LIMIT $3) old
WHERE d.webhook_id = old.webhook_id AND d.request_id = old.request_id"""
# What was claimed before its webhook was deleted is no matter: nobody is told of its end.
_OF_DELETED = """
DELETE FROM webhook_deliveries d USING (
    SELECT o.webhook_id, o.request_id FROM webhooks w JOIN webhook_deliveries o ON o.webhook_id = w.id
    WHERE w.deleted_at IS NOT NULL LIMIT $1) old
WHERE d.webhook_id = old.webhook_id AND d.request_id = old.request_id"""
# Not what is being sent to it right now: the end of the lease is its next time.
_OF_DISABLED = """
UPDATE webhook_deliveries d SET dead_at = $1, last_error = $2 FROM (
    SELECT o.webhook_id, o.request_id FROM webhooks w JOIN webhook_deliveries o ON o.webhook_id = w.id
    WHERE w.disabled_at IS NOT NULL AND w.deleted_at IS NULL AND o.delivered_at IS NULL AND o.dead_at IS NULL LIMIT $3
    FOR UPDATE OF o SKIP LOCKED) old
WHERE d.webhook_id = old.webhook_id AND d.request_id = old.request_id"""
# The count ends where it would take long; the first that is due is one probe of an index for each webhook.
_BACKLOG = """
SELECT (SELECT count(*) FROM (
            SELECT FROM webhook_deliveries WHERE delivered_at IS NULL AND dead_at IS NULL LIMIT $1) counted) AS waiting,
       (SELECT min(first.next_at) FROM webhooks w CROSS JOIN LATERAL (
            SELECT d.next_at FROM webhook_deliveries d
            WHERE d.webhook_id = w.id AND d.delivered_at IS NULL AND d.dead_at IS NULL
            ORDER BY d.next_at LIMIT 1) first
        WHERE w.deleted_at IS NULL AND w.disabled_at IS NULL) AS oldest"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """How many rows went, and how many were found dead with their webhook."""

    deleted: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """How many deliveries wait, a hundred thousand at most, and since when the first of them is due."""

    waiting: int
    late_seconds: float


async def sweep(pool: Pool, now: datetime) -> Swept:
    """Delete what is done and old, and what was for a deleted webhook; give up what is for a disabled one.

    Safe in several processes at once. Raises `DatabaseOutage`.
    """
    old = await _until_done(pool, _OLD, now - KEPT_DELIVERED, now - KEPT_DEAD, _BATCH, _OF_EACH)
    of_deleted = await _until_done(pool, _OF_DELETED, _BATCH)
    dead = await _until_done(pool, _OF_DISABLED, now, DISABLED, _BATCH)
    return Swept(deleted=old + of_deleted, dead=dead)


async def backlog(pool: Pool, now: datetime) -> Backlog:
    """How much waits. Raises `DatabaseOutage`."""
    with outages_named():
        row = await pool.fetchrow(_BACKLOG, _COUNTED_AT_MOST)
    if row is None:
        raise AssertionError("a SELECT without FROM gives one row")
    late = timedelta(0) if row["oldest"] is None else now - row["oldest"]
    return Backlog(waiting=row["waiting"], late_seconds=max(0.0, late.total_seconds()))


async def _until_done(pool: Pool, statement: str, *values: object) -> int:
    """Short statements, one after the other: no lock is held for long."""
    done = 0
    while True:
        with outages_named():
            changed = int((await pool.execute(statement, *values)).rpartition(" ")[2])
        done += changed
        if not changed:
            return done
