"""Which deliveries are to be made again? One request's, the dead ones, or all since a time, from the ledger.

What is still on its way is left alone. What is queued again has the id that it had, so that a receiver can tell.
"""

import contextlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from store.audit import Trail
from store.database import Pool, PooledConnection
from store.field_error import FieldError
from store.webhooks import Webhook, WebhookName, audited, enable, locked

MOST_AT_ONCE = 10_000
EARLIEST = timedelta(days=30)

_AGAIN = "queued_at = $2, next_at = $2, attempts = 0, delivered_at = NULL, dead_at = NULL"
_FROM_LEDGER = f"""
INSERT INTO webhook_deliveries AS d (webhook_id, request_id, queued_at, next_at)
SELECT $1, request_id, $2, $2 FROM found ORDER BY request_id
ON CONFLICT (webhook_id, request_id) DO UPDATE SET {_AGAIN}
WHERE d.delivered_at IS NOT NULL OR d.dead_at IS NOT NULL
RETURNING 1"""  # noqa: S608 - made of constants
_ONE = f"""
WITH found AS (SELECT request_id FROM inference_requests WHERE request_id = $3 AND tenant_id = $4),
     queued AS ({_FROM_LEDGER})
SELECT (SELECT count(*) FROM found) AS found, (SELECT count(*) FROM queued) AS queued, NULL::timestamptz AS last"""  # noqa: S608
_SINCE = f"""
WITH found AS (
         SELECT request_id, ended_at FROM inference_requests
         WHERE tenant_id = $4 AND ended_at >= $3 AND ($5::text[] = '{{}}' OR state = ANY ($5))
         ORDER BY ended_at LIMIT $6),
     queued AS ({_FROM_LEDGER})
SELECT (SELECT count(*) FROM found) AS found, (SELECT count(*) FROM queued) AS queued,
       (SELECT max(ended_at) FROM found) AS last"""  # noqa: S608
_DEAD = f"""
WITH found AS (SELECT request_id FROM webhook_deliveries
               WHERE webhook_id = $1 AND dead_at IS NOT NULL LIMIT $3 FOR UPDATE SKIP LOCKED),
     queued AS (UPDATE webhook_deliveries d SET {_AGAIN} FROM found f
                WHERE d.webhook_id = $1 AND d.request_id = f.request_id RETURNING 1)
SELECT (SELECT count(*) FROM found) AS found, (SELECT count(*) FROM queued) AS queued, NULL::timestamptz AS last"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What to send again: one of these."""

    request_id: str | None = None
    dead: bool = False
    since: datetime | None = None
    """What ended since then, an aware time, whether it was ever queued or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """How many were queued. `more` when there are others: ask again, with `since` that is `next_since`."""

    queued: int
    more: bool = False
    next_since: datetime | None = None


async def replay(pool: Pool, name: WebhookName, asked: Replay, *, now: datetime, trail: Trail) -> Replayed:
    """Queue it again, `MOST_AT_ONCE` at a time, and enable the webhook if it was disabled: its endpoint is back.

    Raises `UnknownWebhook`, and `FieldError` for a request that the tenant has not, a time too long ago, and when not
    exactly one of the three is asked for.
    """
    if (asked.request_id is not None) + asked.dead + (asked.since is not None) != 1:
        raise FieldError("request_id", "name either a request, or the dead ones, or a time")
    async with locked(pool, name) as (connection, webhook):
        done = await _queue(connection, webhook, asked, now)
        await enable(connection, webhook, trail=trail)
        after = {"request": asked.request_id, "dead": asked.dead, "since": asked.since, "queued": done.queued}
        await trail.append(connection, audited("replay", webhook, after=after))
    return done


async def _queue(connection: PooledConnection, webhook: Webhook, asked: Replay, now: datetime) -> Replayed:
    if asked.request_id is not None:
        return await _queue_one(connection, webhook, asked.request_id, now)
    if asked.since is not None:
        return await _queue_since(connection, webhook, asked.since, now)
    row = await connection.fetchrow(_DEAD, webhook.id, now, MOST_AT_ONCE)
    return Replayed(queued=row["queued"], more=row["found"] == MOST_AT_ONCE) if row else Replayed(queued=0)


async def _queue_one(connection: PooledConnection, webhook: Webhook, request_id: str, now: datetime) -> Replayed:
    row = None
    with contextlib.suppress(ValueError):
        row = await connection.fetchrow(_ONE, webhook.id, now, UUID(request_id), webhook.tenant_id)
    if row is None or not row["found"]:
        raise FieldError("request_id", f"the tenant has no request {request_id[:80]!r} that has ended")
    return Replayed(queued=row["queued"])


async def _queue_since(connection: PooledConnection, webhook: Webhook, since: datetime, now: datetime) -> Replayed:
    if since < now - EARLIEST:
        raise FieldError("since", f"must be at most {EARLIEST.days} days ago")
    values = (webhook.id, now, since, webhook.tenant_id, list(webhook.states), MOST_AT_ONCE)
    row = await connection.fetchrow(_SINCE, *values)
    if row is None or row["found"] < MOST_AT_ONCE:
        return Replayed(queued=row["queued"] if row else 0)
    return Replayed(queued=row["queued"], more=True, next_since=row["last"])
