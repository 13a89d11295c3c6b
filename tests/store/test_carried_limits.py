"""Which limits the owners of a request carry: those of the plan with the tenant's own, and of whom else."""

from quota.applied import Target
from quota.limit import Dimension, Limit, requests_per_minute, tokens_per_day
from store.carried_limits import carried_limits
from store.database import Pool
from store.limits import encode_limits
from tests.support.identity_rows import add_tenant

TEN_REQUESTS, TEN_TOKENS, FIVE_TOKENS = requests_per_minute(10), tokens_per_day(10), tokens_per_day(5)


async def _give(pool: Pool, table: str, row_id: str, *limits: Limit) -> None:
    by = "name" if table == "plans" else "id"
    await pool.execute(f"UPDATE {table} SET limits = $2::jsonb WHERE {by} = $1", row_id, encode_limits(limits))  # noqa: S608


def _target(principal_id: str) -> Target:
    return Target(organization_id="org_a", tenant_id="ten_a", principal_id=principal_id, route="", model="")


async def test_each_owner_carries_its_own(pool: Pool) -> None:
    await add_tenant(pool)
    await add_tenant(pool, "ten_b", name="other")
    await pool.execute(
        "INSERT INTO api_keys (id, tenant_id, name, tag, hash) VALUES ('k', 'ten_a', 'k', 'live', $1)", bytes(32)
    )
    await _give(pool, "plans", "pro", TEN_REQUESTS, TEN_TOKENS)
    await _give(pool, "organizations", "org_a", TEN_TOKENS)
    await _give(pool, "tenants", "ten_a", FIVE_TOKENS)
    await _give(pool, "api_keys", "k", TEN_REQUESTS)
    found = await carried_limits(pool, ["ten_a"])
    assert found.of(_target("key_k")) == (
        (Dimension.ORGANIZATION, (TEN_TOKENS,)),
        (Dimension.TENANT, (TEN_REQUESTS, FIVE_TOKENS)),
        (Dimension.PRINCIPAL, (TEN_REQUESTS,)),
    )
    assert found.of(_target("key_other"))[-1] == (Dimension.PRINCIPAL, ())
    assert set(found.tenants) == {"ten_a"}


async def test_nobody_carries_nothing(pool: Pool) -> None:
    found = await carried_limits(pool, [])
    assert found.of(_target("key_k")) == tuple((owner, ()) for owner in tuple(Dimension)[:3])
