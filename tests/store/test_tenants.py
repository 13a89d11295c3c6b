"""Tenants: what is made is found, what changes is audited, and what cannot be says which field is wrong."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from authz.api_key import generate
from authz.principal import Handle, PrincipalKind
from quota.limit import Limit, requests_per_minute, tokens_per_day
from store import api_keys, subjects, tenants, workloads
from store.api_keys import NewKey
from store.database import Pool
from store.deletion import Deletion, foreseen
from store.directory import PostgresDirectory
from store.organizations import list_organizations
from store.subjects import SubjectName
from store.tenants import NewTenant, Tenant, TenantChanges, find_tenant, list_tenants
from store.workloads import NewWorkload
from tests.support.identity_rows import NOON, PEPPER, TRAIL, audited
from tests.support.refused import refused

LATER = NOON + timedelta(hours=1)
SEARCH = NewTenant(name="search", organization="acme", plan="pro")
POLICY = '{"allowedProviders": ["openai", "local"], "preferredProvider": "local", "maxCostPerRequestUsd": 0.05}'


async def made(pool: Pool, **changes: Any) -> Tenant:
    return await tenants.create(pool, replace(SEARCH, **changes), trail=TRAIL)


async def changed(pool: Pool, tenant: Tenant, **changes: Any) -> Tenant:
    return await tenants.update(pool, tenant.id, TenantChanges(**changes), trail=TRAIL)


async def key_of(pool: Pool, tenant: Tenant) -> str:
    new = NewKey(key=generate(), tenant_id=tenant.id, name="laptop")
    return (await api_keys.create(pool, new, pepper=PEPPER, trail=TRAIL)).id


async def test_one_is_found_by_id_and_by_name(pool: Pool) -> None:
    tenant = await made(pool)
    assert tenant.id.startswith("ten_")
    assert (tenant.organization, tenant.plan, tenant.limits, tenant.networks) == ("acme", "pro", (), ())
    assert tenant.time_zone == "UTC"
    assert await find_tenant(pool, tenant.id) == await find_tenant(pool, "search") == tenant
    assert await list_tenants(pool) == [tenant]


async def test_all_that_is_given_is_stored_and_audited(pool: Pool) -> None:
    tenant = await made(
        pool,
        limits=(requests_per_minute(5),),
        networks=("192.0.2.7", "10.0.0.0/8"),
        routing_policy=POLICY,
        certificate_required=True,
        time_zone="Europe/Berlin",
    )
    assert tenant.time_zone == "Europe/Berlin"
    assert tenant.networks == ("10.0.0.0/8", "192.0.2.7/32")
    assert tenant.routing_policy is not None
    assert tenant.routing_policy.startswith(f'{{"tenantId":"{tenant.id}","allowedProviders":["openai","local"]')
    assert await find_tenant(pool, tenant.id) == tenant
    organization, change = await audited(pool)
    assert organization["action"] == "organization.create"
    assert (change["action"], change["subject"]) == ("tenant.create", f"tenant:{tenant.id}")
    assert change["tenant_id"] == tenant.id
    assert change["before"] is None
    assert change["after"]["limits"][0]["ceiling"] == 5
    assert change["after"]["time_zone"] == "Europe/Berlin"
    assert change["after"]["routing_policy"]["preferredProvider"] == "local"


async def test_the_second_tenant_joins_the_organization(pool: Pool) -> None:
    first = await made(pool)
    second = await made(pool, name="two", organization=first.organization_id)
    assert second.organization_id == first.organization_id
    assert [organization.name for organization in await list_organizations(pool)] == ["acme"]


async def test_tenants_made_at_once_share_their_new_organization(pool: Pool) -> None:
    all_made = await asyncio.gather(*(made(pool, name=f"t{n}") for n in range(8)))
    assert len({tenant.organization_id for tenant in all_made}) == 1


async def test_a_name_that_two_tenants_have_needs_an_id(pool: Pool) -> None:
    one, two = await made(pool), await made(pool, organization="other")
    await refused(find_tenant(pool, "search"), "tenant", one.id, two.id, "other")


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"plan": "gold"}, "plan", "enterprise, free, pro"),
        ({"limits": (requests_per_minute(1), requests_per_minute(2))}, "limits", "more than once"),
        *(
            ({"time_zone": zone}, "time_zone", "Europe/Berlin")
            for zone in ("", "Berlin", "Europe", "localtime", "posixrules", "../Europe/Berlin", "europe/berlin", "a\0")
        ),
        ({"networks": ("10.0.0.1/8",)}, "networks", "10.0.0.0/8"),
        ({"networks": tuple(f"10.0.0.{n}" for n in range(101))}, "networks", "101"),
        ({"routing_policy": '{"maxCostPerRequestUsd": true}'}, "routing_policy.maxCostPerRequestUsd", "number"),
        ({"routing_policy": '{"tenantId": "ten_other"}'}, "routing_policy.tenantId", "own"),
        *(({"name": name}, "name", "") for name in ("", " a", "a\n", "ten_a", "org_a", "a\0", "x" * 101)),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_changed(
    pool: Pool, changes: dict[str, Any], field: str, word: str
) -> None:
    await refused(made(pool, **changes), field, word)
    assert await list_organizations(pool) == []
    tenant = await made(pool)
    before = await audited(pool)
    await refused(changed(pool, tenant, **changes), field, word)
    assert await find_tenant(pool, "search") == tenant
    assert await audited(pool) == before


async def test_names_that_are_taken_and_owners_that_are_not_there(pool: Pool) -> None:
    await made(pool)
    other = await made(pool, name="other")
    await refused(made(pool), "name", "acme", "search", "already")
    await refused(changed(pool, other, name="search"), "name", "acme", "search", "already")
    await refused(made(pool, name="b", organization="org_none"), "organization", "org_none")
    await refused(made(pool, name="b", organization=" "), "organization")
    await refused(find_tenant(pool, "nobody"), "tenant", "nobody")


@pytest.mark.parametrize(
    ("changes", "stored"),
    [
        ({"name": "find"}, {"name": "find"}),
        ({"plan": "free"}, {"plan": "free"}),
        ({"limits": (tokens_per_day(9),)}, {"limits": (tokens_per_day(9),)}),
        ({"networks": ("2001:DB8::/32",)}, {"networks": ("2001:db8::/32",)}),
        ({"certificate_required": True}, {"certificate_required": True}),
        ({"time_zone": "Asia/Kolkata"}, {"time_zone": "Asia/Kolkata"}),
        ({"limits": (), "networks": ()}, {"limits": (), "networks": ()}),
        ({"clear_routing_policy": True}, {"routing_policy": None}),
    ],
)
async def test_what_is_changed_is_changed_and_the_rest_stays(
    pool: Pool, changes: dict[str, Any], stored: dict[str, Any]
) -> None:
    tenant = await made(pool, limits=(requests_per_minute(5),), networks=("10.0.0.0/8",), routing_policy=POLICY)
    after = await changed(pool, tenant, **changes)
    assert after == replace(tenant, **stored) == await find_tenant(pool, tenant.id)
    change = (await audited(pool))[-1]
    assert change["action"] == "tenant.update"
    assert set(change["before"]) == set(change["after"]) == set(stored)


async def test_what_changes_nothing_leaves_no_row(pool: Pool) -> None:
    tenant = await made(pool, networks=("10.0.0.0/8",), routing_policy=POLICY)
    before = await audited(pool)
    same = await changed(pool, tenant, name="search", networks=("10.0.0.0/8",), routing_policy=POLICY, limits=())
    assert same == tenant
    await changed(pool, tenant)
    await tenants.resume(pool, "search", trail=TRAIL)
    assert await audited(pool) == before


async def test_changes_at_once_are_all_made(pool: Pool) -> None:
    tenant = await made(pool)
    await asyncio.gather(
        changed(pool, tenant, name="find"),
        changed(pool, tenant, networks=("10.0.0.0/8",)),
        changed(pool, tenant, certificate_required=True),
    )
    after = await find_tenant(pool, tenant.id)
    assert (after.name, after.networks, after.certificate_required) == ("find", ("10.0.0.0/8",), True)


async def test_suspended_again_its_first_time_stays(pool: Pool) -> None:
    await made(pool)
    assert (await tenants.suspend(pool, "search", now=NOON, trail=TRAIL)).suspended_at == NOON
    assert (await tenants.suspend(pool, "search", now=LATER, trail=TRAIL)).suspended_at == NOON
    assert (await tenants.resume(pool, "search", trail=TRAIL)).suspended_at is None
    actions = [change["action"] for change in await audited(pool)]
    assert actions[-2:] == ["tenant.suspend", "tenant.resume"]


async def test_a_deleted_one_takes_its_principals_along_and_leaves_its_history(pool: Pool) -> None:
    tenant, other = await made(pool), await made(pool, name="other")
    key, others_key = await key_of(pool, tenant), await key_of(pool, other)
    revoked = await key_of(pool, tenant)
    await api_keys.revoke(pool, revoked, now=NOON, trail=TRAIL)
    name = "spiffe://acme/search"
    await workloads.create(pool, NewWorkload(tenant_id=tenant.id, certificate_name=name), trail=TRAIL)
    subject = SubjectName(tenant_id=tenant.id, id="jwt_0a1b2c3d4e5f0a1b2c3d")
    await subjects.suspend(pool, subject, now=NOON, trail=TRAIL)
    rows = len(await audited(pool))

    expected = Deletion(tenants=1, keys_revoked=1, workloads_deleted=1, subjects_deleted=1)
    assert await foreseen(pool, [tenant.id]) == expected
    assert await tenants.delete(pool, "search", now=LATER, trail=TRAIL) == expected

    changes = (await audited(pool))[rows:]
    assert [change["action"] for change in changes] == [
        "tenant.delete",
        "key.revoke",
        "workload.delete",
        "subject.delete",
    ]
    assert changes[1]["subject"] == f"key:{key}"
    assert {change["tenant_id"] for change in changes} == {tenant.id}
    assert (await api_keys.find(pool, key)).revoked_at == LATER
    assert (await api_keys.find(pool, revoked)).revoked_at == NOON
    directory = PostgresDirectory(pool)
    assert await directory.find(Handle(PrincipalKind.API_KEY, key)) is None
    assert await directory.find(Handle(PrincipalKind.WORKLOAD, name)) is None
    assert await directory.find(Handle(PrincipalKind.API_KEY, others_key)) is not None


async def test_a_deleted_ones_name_is_free_and_its_id_is_not(pool: Pool) -> None:
    tenant = await made(pool)
    await tenants.delete(pool, "search", now=NOON, trail=TRAIL)
    await refused(find_tenant(pool, "search"), "tenant", "search")
    await refused(find_tenant(pool, tenant.id), "tenant", tenant.id)
    await refused(tenants.delete(pool, tenant.id, now=NOON, trail=TRAIL), "tenant", tenant.id)
    await refused(changed(pool, tenant, name="b"), "tenant", tenant.id)
    again = await made(pool)
    assert again.id != tenant.id
    assert await list_tenants(pool) == [again]
    assert [gone.id for gone in await list_tenants(pool, deleted=True)] == [tenant.id]
    assert (await find_tenant(pool, tenant.id, deleted=True)).deleted_at == NOON
    assert await find_tenant(pool, "search", deleted=True) == again


async def test_a_key_made_while_its_tenant_is_deleted_opens_nothing(pool: Pool) -> None:
    for n in range(5):
        tenant = await made(pool, name=f"t{n}")
        await asyncio.gather(
            key_of(pool, tenant),
            tenants.delete(pool, tenant.id, now=NOON, trail=TRAIL),
            return_exceptions=True,
        )
    assert all(key.revoked_at is not None for key in await api_keys.list_keys(pool))


async def test_a_policy_reaches_the_principal_in_one_line_of_ascii(pool: Pool) -> None:
    tenant = await made(pool, routing_policy=POLICY, limits=(requests_per_minute(5),))
    found = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, await key_of(pool, tenant)))
    assert found is not None
    assert found.tenant.routing_policy is not None
    assert found.tenant.routing_policy.isascii()
    assert found.tenant.routing_policy.isprintable()
    held = {limit.name: limit for limit in found.tenant.limits}
    assert held["requests_per_minute"] == requests_per_minute(5)
    assert isinstance(held["tokens_per_day"], Limit)
