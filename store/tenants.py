"""Which organizations and tenants are there, and how do new ones come to be?"""

import secrets
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from store.database import Pool, PooledConnection, outages_named
from store.field_error import FieldError
from store.name import checked
from store.plans import unknown_plan

_ID_BYTES = 10
_SELECT = """
SELECT t.id, t.name, t.plan, t.suspended_at, t.created_at,
       o.id AS organization_id, o.name AS organization, o.suspended_at AS organization_suspended_at
FROM tenants t JOIN organizations o ON o.id = t.organization_id"""
_INSERT_ORGANIZATION = """
INSERT INTO organizations (id, name) VALUES ($1, $2)
ON CONFLICT (name) DO NOTHING RETURNING id, name, suspended_at, created_at"""
_FIND_ORGANIZATION = "SELECT id, name, suspended_at, created_at FROM organizations WHERE name = $1 OR id = $1"
_INSERT_TENANT = "INSERT INTO tenants (id, organization_id, name, plan) VALUES ($1, $2, $3, $4)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """Who owns tenants."""

    id: str
    name: str
    suspended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who is limited and charged, with the organization it belongs to."""

    id: str
    name: str
    plan: str
    organization_id: str
    organization: str
    suspended_at: datetime | None
    organization_suspended_at: datetime | None
    created_at: datetime


async def create_organization(pool: Pool, name: str) -> Organization:
    """Create the organization; raises `FieldError` when the name is taken or cannot be one."""
    checked("organization", name)
    with outages_named():
        row = await pool.fetchrow(_INSERT_ORGANIZATION, _new_id("org"), name)
    if row is None:
        raise FieldError("organization", f"there is one named {name!r} already")
    return Organization(**row)


async def list_organizations(pool: Pool) -> list[Organization]:
    """Return every organization, by name."""
    with outages_named():
        rows = await pool.fetch("SELECT id, name, suspended_at, created_at FROM organizations ORDER BY name")
    return [Organization(**row) for row in rows]


async def create_tenant(pool: Pool, name: str, *, organization: str, plan: str) -> Tenant:
    """Create the tenant, and the organization when there is none of this name (or id): both or neither.

    Raises `FieldError` for a name that is taken or a plan that does not exist.
    """
    checked("name", name)
    if not organization.startswith("org_"):
        checked("organization", organization)
    tenant_id = _new_id("ten")
    with outages_named():
        try:
            async with pool.acquire() as connection, connection.transaction():
                owner = await _ensure_organization(connection, organization)
                await connection.execute(_INSERT_TENANT, tenant_id, owner.id, name, plan)
        except asyncpg.UniqueViolationError:
            raise FieldError("name", f"the organization {organization!r} has a tenant {name!r} already") from None
        except asyncpg.ForeignKeyViolationError:
            raise await unknown_plan(pool, plan) from None
    return await find_tenant(pool, tenant_id)


async def list_tenants(pool: Pool) -> list[Tenant]:
    """Return every tenant, by organization and name."""
    with outages_named():
        return [Tenant(**row) for row in await pool.fetch(f"{_SELECT} ORDER BY o.name, t.name")]


async def find_tenant(pool: Pool, name_or_id: str) -> Tenant:
    """Return the tenant with this id or name; raises `FieldError` when there is none, or several of the name."""
    with outages_named():
        rows = await pool.fetch(f"{_SELECT} WHERE t.id = $1 OR t.name = $1 ORDER BY o.name", name_or_id)
    match rows:
        case [row]:
            return Tenant(**row)
        case []:
            raise FieldError("tenant", f"there is no tenant {name_or_id!r}")
        case _:
            found = ", ".join(f"{row['id']} (of {row['organization']})" for row in rows)
            raise FieldError("tenant", f"{len(rows)} tenants are named {name_or_id!r}, give an id: {found}")


async def _ensure_organization(connection: PooledConnection, name_or_id: str) -> Organization:
    row = await connection.fetchrow(_FIND_ORGANIZATION, name_or_id)
    if row is None and name_or_id.startswith("org_"):
        raise FieldError("organization", f"there is no organization {name_or_id!r}")
    if row is None:
        row = await connection.fetchrow(_INSERT_ORGANIZATION, _new_id("org"), name_or_id)
    if row is None:  # made by someone else between the two statements
        row = await connection.fetchrow(_FIND_ORGANIZATION, name_or_id)
    if row is None:
        raise FieldError("organization", f"{name_or_id!r} was removed at this moment; try again")
    return Organization(**row)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(_ID_BYTES)}"
