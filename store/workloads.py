"""Which workloads prove themselves by a client certificate, and what may each do?

Every change and its row in the audit trail are one transaction; a change that changes nothing leaves no row.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

import asyncpg

from store import certificate_name, permissions
from store.audit import Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.difference import difference
from store.field_error import FieldError
from store.permissions import PermissionChanges, Permissions

_ID_BYTES = 10
_SELECT = """
SELECT w.id, w.tenant_id, t.name AS tenant, w.certificate_name, w.scopes, w.roles, w.models, w.networks, w.limits,
       w.suspended_at, w.created_at
FROM workloads w JOIN tenants t ON t.id = w.tenant_id"""
# Never two: a certificate's name does not look like an id.
_NAMED = f"{_SELECT} WHERE w.id = $1 OR w.certificate_name = $1"
_LOCK_TENANT = "SELECT id FROM tenants WHERE id = $1 AND deleted_at IS NULL FOR SHARE"
_INSERT = """
INSERT INTO workloads (id, tenant_id, certificate_name, scopes, roles, models, networks, limits)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"""
_UPDATE = """
UPDATE workloads SET suspended_at = $2, scopes = $3, roles = $4, models = $5, networks = $6, limits = $7
WHERE id = $1"""
# Facts of a workload that are not what a person decides about it.
_UNDECIDED = {"id", "tenant_id", "tenant", "created_at"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorkload(Permissions):
    """Whose workload it is, what its certificate calls it, and what it may do: inference, when nothing is named."""

    tenant_id: str
    certificate_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload(Permissions):
    """A workload as stored."""

    id: str
    tenant_id: str
    tenant: str
    certificate_name: str
    suspended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class WorkloadChange:
    """The workload afterwards. `changed` is false when it was so already."""

    workload: Workload
    changed: bool


async def create(pool: Pool, new: NewWorkload, *, trail: Trail) -> Workload:
    """Create the workload; raises `FieldError` for what it cannot be, a name that is taken included."""
    asked = permissions.checked(permissions.with_default_role(new))
    name = certificate_name.checked(new.certificate_name)
    workload_id = f"wl_{secrets.token_hex(_ID_BYTES)}"
    with outages_named():
        try:
            async with pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_LOCK_TENANT, new.tenant_id) is None:
                    raise FieldError("tenant", f"there is no tenant {new.tenant_id!r}")
                await permissions.check_roles(connection, asked.roles)
                values = permissions.column_values(asked)
                await connection.execute(_INSERT, workload_id, new.tenant_id, name, *values)
                stored = await _find(connection, workload_id, _NAMED)
                await trail.append(connection, _audited("create", stored, after=_decided(stored)))
        except asyncpg.UniqueViolationError:
            raise FieldError(certificate_name.FIELD, f"there is a workload {name[:80]!r} already") from None
    return stored


async def find(pool: Pool, id_or_name: str) -> Workload:
    """Return the workload with this id or certificate's name; raises `FieldError` when there is none."""
    with outages_named():
        async with pool.acquire() as connection:
            return await _find(connection, id_or_name, _NAMED)


async def list_workloads(pool: Pool, *, tenant_id: str | None = None) -> list[Workload]:
    """Return every workload, or those of one tenant, by name."""
    with outages_named():
        if tenant_id is None:
            rows = await pool.fetch(f"{_SELECT} ORDER BY w.certificate_name")
        else:
            rows = await pool.fetch(f"{_SELECT} WHERE w.tenant_id = $1 ORDER BY w.certificate_name", tenant_id)
    return [Workload(**permissions.fields_of(row)) for row in rows]


async def update(pool: Pool, id_or_name: str, changes: PermissionChanges, *, trail: Trail) -> WorkloadChange:
    """Change what the workload may do; raises `FieldError` when it is unknown, or cannot be so."""
    return await _change(
        pool, id_or_name, "update", lambda workload: permissions.changed(workload, changes), trail=trail
    )


async def suspend(pool: Pool, id_or_name: str, *, now: datetime, trail: Trail) -> WorkloadChange:
    """Refuse the workload until it is resumed; raises `FieldError` when it is unknown."""
    return await _change(
        pool, id_or_name, "suspend", lambda found: replace(found, suspended_at=found.suspended_at or now), trail=trail
    )


async def resume(pool: Pool, id_or_name: str, *, trail: Trail) -> WorkloadChange:
    """Let a suspended workload in again; raises `FieldError` when it is unknown."""
    return await _change(pool, id_or_name, "resume", lambda found: replace(found, suspended_at=None), trail=trail)


async def delete(pool: Pool, id_or_name: str, *, trail: Trail) -> Workload:
    """Remove the workload and return what it was; its name may be given again. Raises `FieldError` when unknown."""
    async with _locked(pool, id_or_name) as (connection, workload):
        await connection.execute("DELETE FROM workloads WHERE id = $1", workload.id)
        await trail.append(connection, _audited("delete", workload, before=_decided(workload)))
    return workload


async def _change(
    pool: Pool, id_or_name: str, action: str, wanted: Callable[[Workload], Workload], *, trail: Trail
) -> WorkloadChange:
    async with _locked(pool, id_or_name) as (connection, before):
        after = wanted(before)
        if after == before:
            return WorkloadChange(before, changed=False)
        # A role it has may be gone meanwhile; only new ones must exist.
        await permissions.check_roles(connection, tuple(set(after.roles) - set(before.roles)))
        await connection.execute(_UPDATE, before.id, after.suspended_at, *permissions.column_values(after))
        facts = difference(_decided(before), _decided(after))
        await trail.append(connection, _audited(action, after, *facts))
    return WorkloadChange(after, changed=True)


@contextlib.asynccontextmanager
async def _locked(pool: Pool, id_or_name: str) -> AsyncIterator[tuple[PooledConnection, Workload]]:
    """A transaction in which nobody else changes the workload."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            yield connection, await _find(connection, id_or_name, f"{_NAMED} FOR UPDATE OF w")


async def _find(connection: PooledConnection, id_or_name: str, query: str) -> Workload:
    row = await connection.fetchrow(query, id_or_name)
    if row is None:
        raise FieldError("workload", f"there is no workload {id_or_name[:80]!r}")
    return Workload(**permissions.fields_of(row))


def _decided(workload: Workload) -> dict[str, Any]:
    """What people have decided about the workload, as the audit trail keeps it."""
    return {field.name: getattr(workload, field.name) for field in fields(workload) if field.name not in _UNDECIDED}


def _audited(
    action: str, workload: Workload, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
) -> Change:
    subject = f"workload:{workload.id}"
    return Change(
        action=f"workload.{action}", subject=subject, tenant_id=workload.tenant_id, before=before, after=after
    )
