"""Webhooks of a tenant, and requests of it that have ended."""

from datetime import datetime, timedelta
from typing import Any

from extproc.record import UsageRecord
from store import ledger, webhook_deliveries, webhooks
from store.database import Pool
from store.webhook_deliveries import Claimed, Room
from store.webhooks import NewWebhook, WithSecret
from tests.support.identity_rows import NOON, PEPPER, TRAIL
from tests.support.records import usage_record

LEASE = timedelta(minutes=1)


async def made(pool: Pool, tenant_id: str = "ten_a", **changes: Any) -> WithSecret:
    """A webhook of a tenant that is there."""
    whole = {"tenant_id": tenant_id, "url": "https://hooks.example/in", **changes}
    return await webhooks.create(pool, NewWebhook(**whole), pepper=PEPPER, now=NOON, trail=TRAIL)


async def ended(pool: Pool, count: int = 1, **changes: Any) -> list[UsageRecord]:
    """Requests of ten_a that are in the ledger now, and what is queued for them due since NOON."""
    records = [usage_record(**changes) for _ in range(count)]
    assert await ledger.write(pool, records) == count
    await pool.execute("UPDATE webhook_deliveries SET queued_at = $1, next_at = $1 WHERE attempts = 0", NOON)
    return records


async def queued(pool: Pool) -> set[tuple[str, str]]:
    """All rows of the outbox: webhook and request."""
    rows = await pool.fetch("SELECT webhook_id, request_id::text FROM webhook_deliveries")
    return {(row["webhook_id"], row["request_id"]) for row in rows}


async def claim(
    pool: Pool, now: datetime = NOON, *, total: int = 1000, each: int = 1000, flying: dict[str, int] | None = None
) -> list[Claimed]:
    """Claim what is due, for a minute."""
    room = Room(total=total, each=each, flying=flying or {})
    return await webhook_deliveries.claim(pool, room, now=now, until=now + LEASE, pepper=PEPPER)
