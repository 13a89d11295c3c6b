"""Rows that other rows belong to, the audit trail of a test, and what was written into it."""

import json
from datetime import UTC, datetime
from typing import Any

from store.audit import Actor, Trail
from store.database import Pool

PEPPER = b"p" * 32
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TRAIL = Trail(Actor(name="cli:tester", source="host"), pepper=PEPPER, now=lambda: NOON)


async def add_tenant(pool: Pool, tenant_id: str = "ten_a", *, name: str = "search", deleted: bool = False) -> str:
    """A tenant of the organization org_a, which is made when it is missing."""
    await pool.execute("INSERT INTO organizations (id, name) VALUES ('org_a', 'acme') ON CONFLICT (id) DO NOTHING")
    await pool.execute(
        "INSERT INTO tenants (id, organization_id, name, plan, deleted_at) VALUES ($1, 'org_a', $2, 'pro', $3)",
        *(tenant_id, name, NOON if deleted else None),
    )
    return tenant_id


async def audited(pool: Pool) -> list[dict[str, Any]]:
    """The rows of the trail, oldest first."""
    rows = await pool.fetch(
        "SELECT actor, action, subject, tenant_id, before::text, after::text FROM audit ORDER BY number"
    )
    return [{**row, **{name: row[name] and json.loads(row[name]) for name in ("before", "after")}} for row in rows]
