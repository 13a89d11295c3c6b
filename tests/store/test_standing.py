"""Who may not go on, at every level, as one question about many."""

from datetime import UTC, datetime, timedelta

import pytest

from extproc.holder import Holder
from store import standing
from store.database import DatabaseOutage, Pool, opened

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BY_KEY = Holder("org_a", "ten_a", "key_k", "k")
BY_WORKLOAD = Holder("org_a", "ten_a", "wl_a", "")
BY_SUBJECT = Holder("org_a", "ten_a", "jwt_a", "")
ELSEWHERE = Holder("org_b", "ten_b", "key_l", "l")
ALL = {BY_KEY, BY_WORKLOAD, BY_SUBJECT, ELSEWHERE}
OF_A = ALL - {ELSEWHERE}


@pytest.fixture
async def made(pool: Pool) -> Pool:
    """The rows of all of them; nobody has said anything of the subject."""
    await pool.execute("INSERT INTO plans (name, limits, metering) VALUES ('bare', '[]', 'native')")
    for each, key in (("a", "k"), ("b", "l")):
        await pool.execute("INSERT INTO organizations (id, name) VALUES ($1, $1)", f"org_{each}")
        await pool.execute(
            "INSERT INTO tenants (id, organization_id, name, plan) VALUES ($1, $2, $1, 'bare')",
            *(f"ten_{each}", f"org_{each}"),
        )
        await pool.execute(
            "INSERT INTO api_keys (id, tenant_id, name, tag, hash) VALUES ($1, $2, $1, 'live', $3)",
            *(key, f"ten_{each}", key.encode() * 32),
        )
    await pool.execute(
        "INSERT INTO workloads (id, tenant_id, certificate_name) VALUES ('wl_a', 'ten_a', 'spiffe://x/y')"
    )
    return pool


async def test_whoever_stands_goes_on(made: Pool) -> None:
    assert await standing.fallen(made, ALL, now=NOW) == set()


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ("UPDATE api_keys SET revoked_at = $1 WHERE id = 'k'", {BY_KEY}),
        ("UPDATE api_keys SET suspended_at = $1 WHERE id = 'k'", {BY_KEY}),
        ("UPDATE api_keys SET expires_at = $1 WHERE id = 'k'", {BY_KEY}),
        ("UPDATE workloads SET suspended_at = $1", {BY_WORKLOAD}),
        ("DELETE FROM workloads WHERE $1::timestamptz IS NOT NULL", {BY_WORKLOAD}),
        ("INSERT INTO subjects (id, tenant_id, suspended_at) VALUES ('jwt_a', 'ten_a', $1)", {BY_SUBJECT}),
        ("UPDATE tenants SET suspended_at = $1 WHERE id = 'ten_a'", OF_A),
        ("UPDATE tenants SET deleted_at = $1 WHERE id = 'ten_a'", OF_A),
        ("UPDATE organizations SET suspended_at = $1 WHERE id = 'org_a'", OF_A),
        ("UPDATE organizations SET deleted_at = $1 WHERE id = 'org_a'", OF_A),
    ],
)
async def test_whoever_fell_and_nobody_else_is_named(made: Pool, change: str, gone: set[Holder]) -> None:
    await made.execute(change, NOW)
    assert await standing.fallen(made, ALL, now=NOW) == gone


async def test_a_key_that_expires_later_goes_on(made: Pool) -> None:
    await made.execute("UPDATE api_keys SET expires_at = $1", NOW + timedelta(seconds=1))
    assert await standing.fallen(made, ALL, now=NOW) == set()


async def test_an_outage_names_nobody() -> None:
    async with opened("postgresql://postgres@/gateway?host=/nowhere") as pool:
        with pytest.raises(DatabaseOutage):
            await standing.fallen(pool, ALL, now=NOW)
