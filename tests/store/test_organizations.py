"""Organizations: what is made is found, what changes is audited, and what cannot be says which field is wrong."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from authz.api_key import generate
from quota.limit import Dimension, requests_per_minute, tokens_per_day
from store import api_keys, organizations, tenants
from store.api_keys import NewKey
from store.database import Pool
from store.deletion import Deletion
from store.organizations import Organization, OrganizationChanges, find_organization, list_organizations
from store.tenants import NewTenant, find_tenant, list_tenants
from tests.support.identity_rows import NOON, PEPPER, TRAIL, audited
from tests.support.refused import refused

LATER = NOON + timedelta(hours=1)


async def acme(pool: Pool) -> Organization:
    return await organizations.create(pool, "acme", trail=TRAIL)


async def changed(pool: Pool, name_or_id: str, **changes: Any) -> Organization:
    return await organizations.update(pool, name_or_id, OrganizationChanges(**changes), trail=TRAIL)


async def last_change(pool: Pool) -> dict[str, Any]:
    return (await audited(pool))[-1]


async def test_one_is_found_by_id_and_by_name(pool: Pool) -> None:
    made = await acme(pool)
    assert made.id.startswith("org_")
    assert await find_organization(pool, made.id) == await find_organization(pool, "acme") == made
    assert await list_organizations(pool) == [made]
    change = await last_change(pool)
    assert (change["action"], change["subject"]) == ("organization.create", f"organization:{made.id}")
    assert change["after"] == {"name": "acme", "limits": [], "suspended_at": None}


async def test_what_is_wrong_is_named(pool: Pool) -> None:
    await acme(pool)
    await refused(organizations.create(pool, "acme", trail=TRAIL), "organization", "already")
    await refused(find_organization(pool, "nobody"), "organization", "nobody")
    await refused(organizations.suspend(pool, "org_none", now=NOON, trail=TRAIL), "organization", "org_none")
    assert len(await audited(pool)) == 1


@pytest.mark.parametrize("name", ["", " a", "a\n", "org_a", "ten_a", "a\0", "x" * 101])
async def test_names_that_cannot_be(pool: Pool, name: str) -> None:
    await refused(organizations.create(pool, name, trail=TRAIL), "organization")
    made = await acme(pool)
    await refused(changed(pool, made.id, name=name), "organization")


async def test_made_at_once_there_is_one(pool: Pool) -> None:
    made = await asyncio.gather(*(acme(pool) for _ in range(4)), return_exceptions=True)
    assert len([one for one in made if isinstance(one, Organization)]) == 1
    assert len(await audited(pool)) == 1


async def test_a_renamed_one_keeps_its_id(pool: Pool) -> None:
    made = await acme(pool)
    other = await organizations.create(pool, "other", trail=TRAIL)
    renamed = await changed(pool, "acme", name="apex")
    assert await find_organization(pool, made.id) == renamed
    change = await last_change(pool)
    assert (change["before"], change["after"]) == ({"name": "acme"}, {"name": "apex"})
    await refused(changed(pool, other.id, name="apex"), "organization", "already")
    assert len(await audited(pool)) == 3


async def test_its_limits_are_stored_replaced_and_audited(pool: Pool) -> None:
    limits = (tokens_per_day(9), msgspec.structs.replace(tokens_per_day(5), per=(Dimension.PRINCIPAL,)))
    made = await organizations.create(pool, "acme", limits=limits, trail=TRAIL)
    assert made.limits == limits
    assert await find_organization(pool, "acme") == made
    assert (await last_change(pool))["after"]["limits"][1]["per"] == ["principal"]
    assert await changed(pool, "acme", name="apex") == replace(made, name="apex")
    after = await changed(pool, "apex", limits=(requests_per_minute(1),))
    assert (
        after == replace(made, name="apex", limits=(requests_per_minute(1),)) == await find_organization(pool, made.id)
    )
    change = await last_change(pool)
    assert (change["action"], set(change["before"]), set(change["after"])) == (
        *("organization.update", {"limits"}, {"limits"}),
    )
    assert await changed(pool, "apex", limits=after.limits) == await changed(pool, "apex") == after
    assert len(await audited(pool)) == 3


async def test_limits_that_make_no_sense_change_nothing(pool: Pool) -> None:
    doubled = (tokens_per_day(1), msgspec.structs.replace(tokens_per_day(2), per=(Dimension.ORGANIZATION,)))
    await refused(organizations.create(pool, "acme", limits=doubled, trail=TRAIL), "limits", "more than once")
    made = await acme(pool)
    await refused(changed(pool, "acme", name="apex", limits=(tokens_per_day(-1),)), "limits", "ceiling")
    assert await list_organizations(pool) == [made]


async def test_suspended_again_its_first_time_stays(pool: Pool) -> None:
    await acme(pool)
    assert (await organizations.suspend(pool, "acme", now=NOON, trail=TRAIL)).suspended_at == NOON
    assert (await organizations.suspend(pool, "acme", now=LATER, trail=TRAIL)).suspended_at == NOON
    assert (await organizations.resume(pool, "acme", trail=TRAIL)).suspended_at is None
    await organizations.resume(pool, "acme", trail=TRAIL)
    actions = [change["action"] for change in await audited(pool)]
    assert actions == ["organization.create", "organization.suspend", "organization.resume"]


async def test_one_with_tenants_is_not_deleted_alone(pool: Pool) -> None:
    await tenants.create(pool, NewTenant(name="search", organization="acme", plan="pro"), trail=TRAIL)
    before = await audited(pool)
    await refused(organizations.delete(pool, "acme", now=NOON, trail=TRAIL), "organization", "search")
    assert await find_tenant(pool, "search")
    assert await audited(pool) == before


async def test_deleted_with_its_tenants_it_is_gone_and_its_name_free(pool: Pool) -> None:
    owners = [
        await tenants.create(pool, NewTenant(name=name, organization="acme", plan="pro"), trail=TRAIL)
        for name in ("one", "two")
    ]
    for owner in owners:
        new = NewKey(key=generate(), tenant_id=owner.id, name="laptop")
        await api_keys.create(pool, new, pepper=PEPPER, trail=TRAIL)
    other = await tenants.create(pool, NewTenant(name="one", organization="other", plan="pro"), trail=TRAIL)
    done = await organizations.delete(pool, "acme", now=NOON, trail=TRAIL, with_tenants=True)
    assert done == Deletion(tenants=2, keys_revoked=2, workloads_deleted=0, subjects_deleted=0)
    assert await list_tenants(pool) == [other]
    await refused(find_organization(pool, owners[0].organization_id), "organization")
    change = await last_change(pool)
    assert change["action"] == "organization.delete"
    assert change["after"]["deleted_at"].startswith("2026-01-01T12:00:00")
    assert (await acme(pool)).id != owners[0].organization_id


async def test_a_tenant_made_while_its_organization_is_deleted_is_not_left_behind(pool: Pool) -> None:
    for n in range(5):
        made = await organizations.create(pool, f"acme{n}", trail=TRAIL)
        await asyncio.gather(
            tenants.create(pool, NewTenant(name="t", organization=made.id, plan="pro"), trail=TRAIL),
            organizations.delete(pool, made.id, now=NOON, trail=TRAIL),
            return_exceptions=True,
        )
        left = {one.id for one in await list_organizations(pool)}
        assert all(tenant.organization_id in left for tenant in await list_tenants(pool))
