"""Which organizations are there, and how do they come, change and go? Their limits hold for all their tenants."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeAlias

import asyncpg

from quota.limit import Dimension, Limit
from store.audit import AnyConnection, Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.deletion import Deletion, delete_tenants
from store.difference import Facts, difference
from store.field_error import FieldError
from store.limits import checked_limits, decode_limits, encode_limits
from store.name import checked, listed
from store.new_id import new_id

_COLUMNS = "id, name, limits, suspended_at, created_at"
_LIST = f"SELECT {_COLUMNS} FROM organizations WHERE deleted_at IS NULL"  # noqa: S608 - constants
_FIND = f"{_LIST} AND (name = $1 OR id = $1)"
_INSERT = f"""
INSERT INTO organizations (id, name, limits) VALUES ($1, $2, $3::jsonb)
ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING RETURNING {_COLUMNS}"""  # noqa: S608 - constants
_UPDATE = "UPDATE organizations SET name = $2, limits = $3::jsonb, suspended_at = $4 WHERE id = $1"
_DELETE = "UPDATE organizations SET deleted_at = $2 WHERE id = $1"
_TENANTS = "SELECT id, name FROM tenants WHERE organization_id = $1 AND deleted_at IS NULL ORDER BY name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """Who owns tenants. While it is suspended, so are they. `limits` are for all of them together."""

    id: str
    name: str
    limits: tuple[Limit, ...]
    suspended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationChanges:
    """What is to be different; None leaves it as it is. `limits` are all that it then has."""

    name: str | None = None
    limits: tuple[Limit, ...] | None = None


_Locked: TypeAlias = tuple[PooledConnection, Organization]


async def create(pool: Pool, name: str, *, trail: Trail, limits: tuple[Limit, ...] = ()) -> Organization:
    """Create the organization; raises `FieldError` for a name that is taken or cannot be one, and for wrong limits."""
    checked("organization", name)
    carried = _checked_limits(limits)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            made = await _inserted(connection, name, carried)
            if made is None:
                raise _taken(name)
            await trail.append(connection, _audited("create", made, after=_facts(made)))
    return made


async def list_organizations(pool: Pool) -> list[Organization]:
    """Return every organization that was not deleted, by name."""
    with outages_named():
        return [_organization(row) for row in await pool.fetch(f"{_LIST} ORDER BY name")]


async def find_organization(pool: Pool, name_or_id: str) -> Organization:
    """Return the organization with this id or name; raises `FieldError` when there is none."""
    with outages_named():
        return _known(await pool.fetchrow(_FIND, name_or_id), name_or_id)


async def update(pool: Pool, name_or_id: str, changes: OrganizationChanges, *, trail: Trail) -> Organization:
    """Change the organization, from its callers' next request on. Raises `FieldError`; then nothing is changed."""
    fresh: Facts = {}
    if changes.name is not None:
        fresh["name"] = checked("organization", changes.name)
    if changes.limits is not None:
        fresh["limits"] = _checked_limits(changes.limits)
    async with _locked(pool, name_or_id) as (connection, before):
        after = replace(before, **fresh)
        try:
            return await _write(connection, "update", (before, after), trail)
        except asyncpg.UniqueViolationError:
            raise _taken(after.name) from None


async def suspend(pool: Pool, name_or_id: str, *, now: datetime, trail: Trail) -> Organization:
    """Refuse all its tenants until it is resumed; when it is suspended already, its time stays."""
    async with _locked(pool, name_or_id) as (connection, before):
        after = replace(before, suspended_at=before.suspended_at or now)
        return await _write(connection, "suspend", (before, after), trail)


async def resume(pool: Pool, name_or_id: str, *, trail: Trail) -> Organization:
    """Let its tenants in again, but for those that are suspended themselves."""
    async with _locked(pool, name_or_id) as (connection, before):
        return await _write(connection, "resume", (before, replace(before, suspended_at=None)), trail)


async def tenant_ids(pool: Pool, organization_id: str) -> list[str]:
    """The ids of its tenants that were not deleted, by name."""
    with outages_named():
        return [row["id"] for row in await pool.fetch(_TENANTS, organization_id)]


async def delete(pool: Pool, name_or_id: str, *, now: datetime, trail: Trail, with_tenants: bool = False) -> Deletion:
    """Delete the organization; raises `FieldError` while it has tenants, unless they are to go with it."""
    async with _locked(pool, name_or_id) as (connection, organization):
        # Nobody makes a tenant meanwhile: that takes a lock on the organization.
        tenants = await connection.fetch(f"{_TENANTS} FOR UPDATE", organization.id)
        if tenants and not with_tenants:
            names = listed(row["name"] for row in tenants)
            raise FieldError("organization", f"{organization.name!r} has tenants: {names}")
        deletion, changes = await delete_tenants(connection, [row["id"] for row in tenants], now=now)
        await connection.execute(_DELETE, organization.id, now)
        gone = _audited("delete", organization, before=_facts(organization), after={"deleted_at": now})
        await trail.append(connection, *changes, gone)
    return deletion


async def ensure(connection: AnyConnection, name_or_id: str) -> tuple[Organization, list[Change]]:
    """Find the organization or create one of this name; it stays until the caller's transaction ends.

    Returns also what to write into the audit trail. Raises `FieldError`.
    """
    find = f"{_FIND} FOR SHARE"
    row = await connection.fetchrow(find, name_or_id)
    if row is None and not name_or_id.startswith("org_"):
        made = await _inserted(connection, checked("organization", name_or_id))
        if made is not None:
            return made, [_audited("create", made, after=_facts(made))]
        # Someone else made it between the two statements.
        row = await connection.fetchrow(find, name_or_id)
    return _known(row, name_or_id), []


async def _inserted(connection: AnyConnection, name: str, limits: tuple[Limit, ...] = ()) -> Organization | None:
    row = await connection.fetchrow(_INSERT, new_id("org"), name, encode_limits(limits))
    return None if row is None else _organization(row)


@contextlib.asynccontextmanager
async def _locked(pool: Pool, name_or_id: str) -> AsyncIterator[_Locked]:
    """A transaction in which nobody else changes the organization or adds a tenant."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            yield connection, _known(await connection.fetchrow(f"{_FIND} FOR NO KEY UPDATE", name_or_id), name_or_id)


async def _write(
    connection: AnyConnection, action: str, change: tuple[Organization, Organization], trail: Trail
) -> Organization:
    before, after = change
    old, new = difference(_facts(before), _facts(after))
    if new:
        await connection.execute(_UPDATE, after.id, after.name, encode_limits(after.limits), after.suspended_at)
        await trail.append(connection, _audited(action, after, old, new))
    return after


def _known(row: asyncpg.Record | None, name_or_id: str) -> Organization:
    if row is None:
        raise FieldError("organization", f"there is no organization {name_or_id[:110]!r}")
    return _organization(row)


def _organization(row: asyncpg.Record) -> Organization:
    return Organization(**{**row, "limits": decode_limits(row["limits"])})


def _checked_limits(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    return checked_limits("limits", limits, Dimension.ORGANIZATION)


def _taken(name: str) -> FieldError:
    return FieldError("organization", f"there is one named {name!r} already")


def _facts(organization: Organization) -> Facts:
    return {"name": organization.name, "limits": organization.limits, "suspended_at": organization.suspended_at}


def _audited(
    action: str, organization: Organization, before: Facts | None = None, after: Facts | None = None
) -> Change:
    return Change(
        action=f"organization.{action}", subject=f"organization:{organization.id}", before=before, after=after
    )
