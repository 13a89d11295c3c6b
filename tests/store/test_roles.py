"""Roles: named sets of scopes; which can be, who holds them, and what of their changes is audited."""

import pytest

from authz.api_key import generate
from authz.scope import Scope
from store import api_keys, roles, workloads
from store.api_keys import NewKey
from store.database import Pool
from store.roles import find_role, list_roles
from store.workloads import NewWorkload
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant, audited
from tests.support.refused import refused


async def test_the_shipped_roles_hold_scopes(pool: Pool) -> None:
    shipped = {role.name: role.scopes for role in await list_roles(pool)}
    assert list(shipped) == ["admin", "inference", "key-manager", "operator", "viewer"]
    assert shipped["admin"] == ("admin",)
    assert {scope for scopes in shipped.values() for scope in scopes} <= set(Scope)


async def test_one_is_created_with_each_scope_once(pool: Pool) -> None:
    made = await roles.create(pool, "auditor", ["usage:read", "models:read", "usage:read"], trail=TRAIL)
    assert made.scopes == ("models:read", "usage:read")
    assert await find_role(pool, "auditor") == made
    await refused(roles.create(pool, "auditor", ["admin"], trail=TRAIL), "role", "already")
    [change] = await audited(pool)
    assert (change["action"], change["subject"]) == ("role.create", "role:auditor")
    assert change["after"] == {"scopes": ["models:read", "usage:read"]}


@pytest.mark.parametrize("name", ["", "Admin", "1st", "-a", "a_b", "a\n", "ä", "a" * 64])
async def test_names_that_cannot_be(pool: Pool, name: str) -> None:
    await refused(roles.create(pool, name, ["admin"], trail=TRAIL), "role")


@pytest.mark.parametrize("scopes", [["models:read", "models:eat"], ["MODELS:READ"], ["*"], [""], []])
async def test_what_is_no_scope_is_named_beside_those_that_are(pool: Pool, scopes: list[str]) -> None:
    bad = repr(scopes[-1]) if scopes else "at least one"
    await refused(roles.create(pool, "auditor", scopes, trail=TRAIL), "scope", bad, "usage:read")
    await refused(roles.update(pool, "viewer", scopes, trail=TRAIL), "scope", bad, "usage:read")
    assert await audited(pool) == []


async def test_a_change_is_audited_and_no_change_is_not(pool: Pool) -> None:
    changed = await roles.update(pool, "key-manager", ["keys:read"], trail=TRAIL)
    assert changed.scopes == ("keys:read",)
    assert await find_role(pool, "key-manager") == changed
    assert await roles.update(pool, "key-manager", ["keys:read"], trail=TRAIL) == changed
    [change] = await audited(pool)
    assert change["before"] == {"scopes": ["keys:read", "keys:write"]}
    assert change["after"] == {"scopes": ["keys:read"]}


async def test_what_is_not_there_is_named(pool: Pool) -> None:
    for asked in (
        find_role(pool, "gold"),
        roles.update(pool, "gold", ["admin"], trail=TRAIL),
        roles.delete(pool, "gold", trail=TRAIL),
    ):
        await refused(asked, "role", "gold", "viewer")


async def test_one_that_is_held_stays(pool: Pool) -> None:
    tenant = await add_tenant(pool)
    new = NewKey(key=generate(), tenant_id=tenant, name="laptop", roles=("viewer",))
    key = await api_keys.create(pool, new, pepper=PEPPER, trail=TRAIL)
    name = "spiffe://acme/search"
    workload = NewWorkload(tenant_id=tenant, certificate_name=name, roles=("operator",))
    await workloads.create(pool, workload, trail=TRAIL)
    await refused(roles.delete(pool, "viewer", trail=TRAIL), "role", f"key {key.id}")
    await refused(roles.delete(pool, "operator", trail=TRAIL), "role", f"workload {name}")
    await api_keys.revoke(pool, key.id, now=NOON, trail=TRAIL)
    gone = await roles.delete(pool, "viewer", trail=TRAIL)
    assert gone.name == "viewer"
    await refused(find_role(pool, "viewer"), "role")
    change = (await audited(pool))[-1]
    assert (change["action"], change["before"], change["after"]) == ("role.delete", {"scopes": list(gone.scopes)}, None)
