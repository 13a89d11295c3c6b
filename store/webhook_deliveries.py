"""What is on its way to which webhook? The outbox: a row for each webhook and ended request.

A trigger (migration 0006) writes the rows in the transaction of the ledger's. Several senders take them at once: who
claims a row pushes its time ahead by a lease, in a statement that passes over what another has locked. What a killed
sender had is due again when its lease has run out. So nothing is lost, nothing is sent by two at a time, and what
arrived just before a kill may be sent again, under the same id.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from store import webhook_secret
from store.database import Pool, outages_named

LONGEST_ERROR = 200

# A walk over the webhooks that have something waiting, one probe of an index each, then the first of each that are
# due: however much waits for one webhook, the others' are found as quickly. Of a webhook whose endpoint failed last
# time, one at a time. The first of every webhook come before the second of any.
_CLAIM = """
WITH RECURSIVE waiting AS (
    SELECT min(webhook_id) AS id FROM webhook_deliveries WHERE delivered_at IS NULL AND dead_at IS NULL
    UNION ALL
    SELECT (SELECT min(d.webhook_id) FROM webhook_deliveries d
            WHERE d.webhook_id > p.id AND d.delivered_at IS NULL AND d.dead_at IS NULL)
    FROM waiting p WHERE p.id IS NOT NULL
), due AS (
    SELECT d.webhook_id, d.request_id, d.next_at
    FROM waiting p
    JOIN webhooks w ON w.id = p.id AND w.disabled_at IS NULL AND w.deleted_at IS NULL
    LEFT JOIN unnest($3::text[], $4::int[]) AS flying (id, number) ON flying.id = w.id
    CROSS JOIN LATERAL (
        SELECT o.webhook_id, o.request_id, o.next_at FROM webhook_deliveries o
        WHERE o.webhook_id = w.id AND o.delivered_at IS NULL AND o.dead_at IS NULL AND o.next_at <= $1
        ORDER BY o.next_at
        LIMIT greatest(0, CASE WHEN w.failing_since IS NULL THEN $5 ELSE 1 END - coalesce(flying.number, 0))
        FOR UPDATE SKIP LOCKED
    ) d
), taken AS (
    SELECT webhook_id, request_id FROM due
    ORDER BY row_number() OVER (PARTITION BY webhook_id ORDER BY next_at), next_at LIMIT $6
)
UPDATE webhook_deliveries d SET next_at = $2, attempts = d.attempts + 1
FROM taken t JOIN webhooks w ON w.id = t.webhook_id
WHERE d.webhook_id = t.webhook_id AND d.request_id = t.request_id
RETURNING d.webhook_id, d.request_id, d.attempts, w.url, w.secret,
          CASE WHEN w.previous_expires_at > $1 THEN w.previous_secret END AS previous_secret"""
# Whoever comes to know that it arrived may say so, late too.
_DELIVERED = """
WITH delivered AS (
    UPDATE webhook_deliveries SET delivered_at = $3, dead_at = NULL, last_status = $4, last_error = NULL
    WHERE webhook_id = $1 AND request_id = $2 AND delivered_at IS NULL RETURNING 1
)
UPDATE webhooks SET failing_since = NULL WHERE id = $1 AND failing_since IS NOT NULL"""
# Not when somebody else has claimed it since: that one will know better.
_FAILED = """
WITH failed AS (
    UPDATE webhook_deliveries SET next_at = coalesce($5, next_at), last_status = $6, last_error = $7,
           dead_at = CASE WHEN $5::timestamptz IS NULL THEN $4::timestamptz END
    WHERE webhook_id = $1 AND request_id = $2 AND attempts = $3 AND delivered_at IS NULL AND dead_at IS NULL RETURNING 1
)
UPDATE webhooks SET failing_since = $4 WHERE id = $1 AND failing_since IS NULL"""
_RECENT = """
SELECT request_id::text, queued_at, next_at, attempts, delivered_at, dead_at, last_status, last_error
FROM webhook_deliveries WHERE webhook_id = $1 ORDER BY queued_at DESC, request_id LIMIT $2"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many may be claimed: in all, and so many of each webhook that not more than `each` are under way here."""

    total: int
    each: int
    flying: Mapping[str, int]
    """How many are under way here already, by webhook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What its claimer sends until the lease runs out. `attempts` counts this one."""

    webhook_id: str
    request_id: str
    attempts: int
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)
    """The newest first; none when they were stored with another pepper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why it did not arrive, and when it is tried again: never, when None. `status` is None without an answer."""

    status: int | None
    error: str
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How things stand with one delivery."""

    request_id: str
    queued_at: datetime
    next_at: datetime
    attempts: int
    delivered_at: datetime | None
    dead_at: datetime | None
    last_status: int | None
    last_error: str | None


async def claim(pool: Pool, room: Room, *, now: datetime, until: datetime, pepper: bytes) -> list[Claimed]:
    """Claim what is due, up to `until`. Raises `DatabaseOutage`."""
    flying = (list(room.flying), list(room.flying.values()))
    with outages_named():
        rows = await pool.fetch(_CLAIM, now, until, *flying, room.each, room.total)
    return [_claimed(row, pepper) for row in rows]


async def delivered(pool: Pool, claimed: Claimed, *, status: int, now: datetime) -> None:
    """Write down that it arrived. Raises `DatabaseOutage`."""
    with outages_named():
        await pool.execute(_DELIVERED, claimed.webhook_id, claimed.request_id, now, status)


async def failed(pool: Pool, claimed: Claimed, failure: Failure, *, now: datetime) -> None:
    """Write down that it did not, and when it is due again, or that it is dead. Raises `DatabaseOutage`."""
    row = (claimed.webhook_id, claimed.request_id, claimed.attempts)
    with outages_named():
        await pool.execute(_FAILED, *row, now, failure.next_at, failure.status, failure.error[:LONGEST_ERROR])


async def recent(pool: Pool, webhook_id: str, *, most: int) -> list[Delivery]:
    """Return the deliveries that were queued last, the newest first. Raises `DatabaseOutage`."""
    with outages_named():
        return [Delivery(**row) for row in await pool.fetch(_RECENT, webhook_id, most)]


def _claimed(row: asyncpg.Record, pepper: bytes) -> Claimed:
    webhook_id = row["webhook_id"]
    stored = [secret for secret in (row["secret"], row["previous_secret"]) if secret is not None]
    opened = [webhook_secret.opened(secret, webhook_id, pepper) for secret in stored]
    return Claimed(
        webhook_id=webhook_id,
        request_id=str(row["request_id"]),
        attempts=row["attempts"],
        url=row["url"],
        # Without the newest none: what carries the former one alone would be refused when that ends.
        secrets=() if opened[0] is None else tuple(secret for secret in opened if secret is not None),
    )
