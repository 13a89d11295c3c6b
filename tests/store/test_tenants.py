"""Organizations, tenants, plans and keys: what is made is found, and what cannot be says which field is wrong."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import pytest

from authz.api_key import ApiKey, generate, keyed_hash
from authz.grant import Metering
from quota.limit import Limit, Unit, Window, requests_per_minute
from store import api_keys, plans, tenants
from store.api_keys import KeyState, NewKey, StoredKey
from store.database import Pool
from store.field_error import FieldError
from store.plans import Plan

PEPPER = b"p" * 32
NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_tenant_is_found_by_id_and_by_name(pool: Pool) -> None:
    tenant = await tenants.create_tenant(pool, "search", organization="acme", plan="pro")
    assert tenant.id.startswith("ten_")
    assert (tenant.organization, tenant.plan) == ("acme", "pro")
    assert await tenants.find_tenant(pool, tenant.id) == tenant
    assert await tenants.find_tenant(pool, "search") == tenant
    assert await tenants.list_tenants(pool) == [tenant]


async def test_the_second_tenant_joins_the_organization(pool: Pool) -> None:
    first = await tenants.create_tenant(pool, "one", organization="acme", plan="pro")
    second = await tenants.create_tenant(pool, "two", organization=first.organization_id, plan="free")
    assert second.organization_id == first.organization_id
    assert [organization.name for organization in await tenants.list_organizations(pool)] == ["acme"]


async def test_tenants_made_at_once_share_their_new_organization(pool: Pool) -> None:
    made = await asyncio.gather(
        *(tenants.create_tenant(pool, f"t{n}", organization="acme", plan="pro") for n in range(8))
    )
    assert len({tenant.organization_id for tenant in made}) == 1


async def test_an_organization_is_made_once(pool: Pool) -> None:
    organization = await tenants.create_organization(pool, "acme")
    assert organization.id.startswith("org_")
    await _refused(tenants.create_organization(pool, "acme"), "organization", "already")


async def test_a_name_that_two_tenants_have_needs_an_id(pool: Pool) -> None:
    one = await tenants.create_tenant(pool, "search", organization="acme", plan="pro")
    two = await tenants.create_tenant(pool, "search", organization="other", plan="pro")
    await _refused(tenants.find_tenant(pool, "search"), "tenant", one.id, two.id, "other")


async def test_a_tenant_that_cannot_be_made_leaves_no_organization(pool: Pool) -> None:
    await _refused(
        tenants.create_tenant(pool, "a", organization="acme", plan="gold"), "plan", "gold", "enterprise, free, pro"
    )
    assert await tenants.list_organizations(pool) == []


async def test_what_is_wrong_is_named(pool: Pool) -> None:
    await tenants.create_tenant(pool, "a", organization="acme", plan="pro")
    await _refused(tenants.create_tenant(pool, "a", organization="acme", plan="pro"), "name", "already")
    await _refused(tenants.create_tenant(pool, "b", organization="org_none", plan="pro"), "organization", "org_none")
    await _refused(tenants.find_tenant(pool, "nobody"), "tenant", "nobody")


@pytest.mark.parametrize("name", ["", " a", "a\n", "ten_a", "org_a", "a\0", "x" * 101])
async def test_names_that_cannot_be(pool: Pool, name: str) -> None:
    await _refused(tenants.create_tenant(pool, name, organization="acme", plan="pro"), "name")
    if not name.startswith("org_"):
        await _refused(tenants.create_tenant(pool, "a", organization=name, plan="pro"), "organization")


async def test_a_plan_is_put_and_got(pool: Pool) -> None:
    plan = Plan(name="tailored", limits=(requests_per_minute(1),), metering=Metering.INLINE)
    await plans.put(pool, plan)
    assert await plans.get(pool, "tailored") == plan
    changed = Plan(name="tailored", limits=())
    await plans.put(pool, changed)
    assert await plans.get(pool, "tailored") == changed
    await _refused(plans.get(pool, "gold"), "plan", "tailored")


@pytest.mark.parametrize(
    "limits",
    [
        (requests_per_minute(1), requests_per_minute(2)),
        (requests_per_minute(-1),),
        (Limit(name="r", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=1),),
    ],
    ids=["twice", "negative", "no length"],
)
async def test_limits_that_make_no_sense(pool: Pool, limits: tuple[Limit, ...]) -> None:
    await _refused(plans.put(pool, Plan(name="odd", limits=limits)), "limits")


async def test_a_key_is_stored_as_id_and_keyed_hash_only(pool: Pool) -> None:
    key, stored = await _key(pool, expires_at=NOW)
    assert (stored.id, stored.tag, stored.expires_at) == (key.id, "live", NOW)
    row = await pool.fetchrow("SELECT * FROM api_keys")
    assert row is not None
    assert row["hash"] == keyed_hash(key.text, PEPPER)
    assert key.text not in str(row)
    assert key.text.split("_")[3] not in str(row)


async def test_keys_are_listed_by_tenant(pool: Pool) -> None:
    _, stored = await _key(pool)
    other = await tenants.create_tenant(pool, "other", organization="acme", plan="pro")
    assert await api_keys.list_keys(pool) == [stored]
    assert await api_keys.list_keys(pool, tenant_id=stored.tenant_id) == [stored]
    assert await api_keys.list_keys(pool, tenant_id=other.id) == []


async def test_revoking_twice_keeps_the_first_time(pool: Pool) -> None:
    key, _ = await _key(pool)
    first = await api_keys.revoke(pool, key.id, now=NOW)
    again = await api_keys.revoke(pool, key.id, now=NOW + timedelta(days=1))
    assert (first.was_active, again.was_active) == (True, False)
    assert first.key.revoked_at == again.key.revoked_at == NOW


async def test_the_state_of_a_key(pool: Pool) -> None:
    key, stored = await _key(pool, expires_at=NOW)
    assert stored.state(NOW - timedelta(seconds=1)) is KeyState.ACTIVE
    assert stored.state(NOW) is KeyState.EXPIRED
    revoked = (await api_keys.revoke(pool, key.id, now=NOW)).key
    assert revoked.state(NOW) is KeyState.REVOKED


async def test_what_is_wrong_with_a_key_is_named(pool: Pool) -> None:
    key, stored = await _key(pool)
    again = NewKey(key=key, tenant_id=stored.tenant_id, name="n")
    await _refused(api_keys.create(pool, again, pepper=PEPPER), "key", "already")
    nobodys = NewKey(key=generate(), tenant_id="ten_none", name="n")
    await _refused(api_keys.create(pool, nobodys, pepper=PEPPER), "tenant", "ten_none")
    await _refused(api_keys.revoke(pool, "none", now=NOW), "key", "none")


async def _key(pool: Pool, expires_at: datetime | None = None) -> tuple[ApiKey, StoredKey]:
    tenant = await tenants.create_tenant(pool, "search", organization="acme", plan="pro")
    key = generate()
    new = NewKey(key=key, tenant_id=tenant.id, name="laptop", expires_at=expires_at)
    return key, await api_keys.create(pool, new, pepper=PEPPER)


async def _refused(asked: Awaitable[object], field: str, *words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await asked
    assert raised.value.field == field
    for word in words:
        assert word in raised.value.reason
