"""Which tenants are there, and how do they come, change and go?"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg

from authz import network
from quota.limit import Limit
from store import organizations, time_zone
from store.audit import AnyConnection, Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.deletion import Deletion, delete_tenants
from store.difference import Facts, difference
from store.field_error import FieldError
from store.limits import checked_limits, decode_limits, encode_limits
from store.name import checked
from store.new_id import new_id
from store.plans import check_plan
from store.routing_policy import canonical_text, stored_text

MAX_NETWORKS = 100
DEFAULT_TIME_ZONE = "UTC"
_SELECT = """
SELECT t.id, t.name, t.plan, t.limits, t.time_zone, t.networks, t.routing_policy, t.certificate_required,
       t.suspended_at, t.deleted_at, t.created_at,
       o.id AS organization_id, o.name AS organization, o.suspended_at AS organization_suspended_at
FROM tenants t JOIN organizations o ON o.id = t.organization_id"""
_LIVE = f"{_SELECT} WHERE t.deleted_at IS NULL"
_INSERT = """
INSERT INTO tenants (id, name, plan, limits, time_zone, networks, routing_policy, certificate_required, organization_id)
VALUES ($1, $2, $3, $4::jsonb, $5, $6, $7::jsonb, $8, $9)"""
_UPDATE = """
UPDATE tenants SET name = $2, plan = $3, limits = $4::jsonb, time_zone = $5, networks = $6,
       routing_policy = $7::jsonb, certificate_required = $8, suspended_at = $9 WHERE id = $1"""
# What an administrator sets, in the order of both statements.
_FIELDS = ("name", "plan", "limits", "time_zone", "networks", "routing_policy", "certificate_required")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who is limited and charged, with the organization it belongs to.

    `limits` are its own, in place of those of its plan that count the same or beside them. Calendar windows go by
    `time_zone`, an IANA name. `networks` are CIDR blocks that its callers must come from, none for anywhere.
    `routing_policy` is JSON text (`store.routing_policy`).
    """

    id: str
    name: str
    plan: str
    limits: tuple[Limit, ...]
    time_zone: str
    networks: tuple[str, ...]
    routing_policy: str | None
    certificate_required: bool
    organization_id: str
    organization: str
    suspended_at: datetime | None
    organization_suspended_at: datetime | None
    deleted_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTenant:
    """A tenant to create. `organization` is a name or an id; a policy may leave out its `tenantId`."""

    name: str
    organization: str
    plan: str
    limits: tuple[Limit, ...] = ()
    time_zone: str = DEFAULT_TIME_ZONE
    networks: tuple[str, ...] = ()
    routing_policy: str | None = None
    certificate_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantChanges:
    """What is to be different; None leaves a field as it is. `limits` and `networks` are all that it then has."""

    name: str | None = None
    plan: str | None = None
    limits: tuple[Limit, ...] | None = None
    time_zone: str | None = None
    networks: tuple[str, ...] | None = None
    routing_policy: str | None = None
    clear_routing_policy: bool = False
    """Takes the policy away, whatever `routing_policy` says."""
    certificate_required: bool | None = None


async def create(pool: Pool, new: NewTenant, *, trail: Trail) -> Tenant:
    """Create the tenant, and the organization when there is none of this name: both or neither.

    Raises `FieldError` for a name that is taken, a plan that does not exist, and what cannot be stored.
    """
    tenant_id = new_id("ten")
    values = _column_values({"routing_policy": None, **_checked(new, tenant_id)})
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await check_plan(connection, new.plan)
            owner, changes = await organizations.ensure(connection, new.organization)
            try:
                await connection.execute(_INSERT, tenant_id, *values, owner.id)
            except asyncpg.UniqueViolationError:
                raise _taken(owner.name, new.name) from None
            tenant = await _find(connection, tenant_id)
            await trail.append(connection, *changes, _audited("create", tenant, after=_facts(tenant)))
    return tenant


async def list_tenants(pool: Pool, *, deleted: bool = False) -> list[Tenant]:
    """Return every tenant, by organization and name; or every one that was deleted, in the order of that."""
    live, gone = (
        f"{_LIVE} ORDER BY o.name, t.name",
        f"{_SELECT} WHERE t.deleted_at IS NOT NULL ORDER BY t.deleted_at, t.id",
    )
    with outages_named():
        return [_tenant(row) for row in await pool.fetch(gone if deleted else live)]


async def find_tenant(pool: Pool, name_or_id: str, *, deleted: bool = False) -> Tenant:
    """Return the tenant with this id or name; raises `FieldError` when there is none, or several of the name.

    With `deleted`, one that was deleted is found too, by its id.
    """
    with outages_named():
        async with pool.acquire() as connection:
            if deleted and (row := await connection.fetchrow(f"{_SELECT} WHERE t.id = $1", name_or_id)):
                return _tenant(row)
            return await _find(connection, name_or_id)


async def update(pool: Pool, name_or_id: str, changes: TenantChanges, *, trail: Trail) -> Tenant:
    """Change the tenant, from its callers' next request on. Raises `FieldError`; then nothing is changed."""
    async with _locked(pool, name_or_id) as (connection, before):
        after = replace(before, **_checked(changes, before.id))
        if changes.clear_routing_policy:
            after = replace(after, routing_policy=None)
        if after.plan != before.plan:
            await check_plan(connection, after.plan)
        return await _write(connection, "update", (before, after), trail)


async def suspend(pool: Pool, name_or_id: str, *, now: datetime, trail: Trail) -> Tenant:
    """Refuse its callers until it is resumed; when it is suspended already, its time stays."""
    async with _locked(pool, name_or_id) as (connection, before):
        after = replace(before, suspended_at=before.suspended_at or now)
        return await _write(connection, "suspend", (before, after), trail)


async def resume(pool: Pool, name_or_id: str, *, trail: Trail) -> Tenant:
    """Let its callers in again, unless its organization is suspended."""
    async with _locked(pool, name_or_id) as (connection, before):
        return await _write(connection, "resume", (before, replace(before, suspended_at=None)), trail)


async def delete(pool: Pool, name_or_id: str, *, now: datetime, trail: Trail) -> Deletion:
    """Delete the tenant, see `store.deletion`; raises `FieldError` when there is none, or several of the name."""
    async with _locked(pool, name_or_id) as (connection, tenant):
        deletion, changes = await delete_tenants(connection, [tenant.id], now=now)
        await trail.append(connection, *changes)
    return deletion


@contextlib.asynccontextmanager
async def _locked(pool: Pool, name_or_id: str) -> AsyncIterator[tuple[PooledConnection, Tenant]]:
    """A transaction in which nobody else changes the tenant, or makes a key or a workload of it."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            yield connection, await _find(connection, name_or_id, lock="FOR NO KEY UPDATE OF t")


async def _find(connection: AnyConnection, name_or_id: str, *, lock: str = "") -> Tenant:
    match await connection.fetch(f"{_LIVE} AND (t.id = $1 OR t.name = $1) ORDER BY o.name {lock}", name_or_id):
        case [row]:
            return _tenant(row)
        case []:
            raise FieldError("tenant", f"there is no tenant {name_or_id[:110]!r}")
        case rows:
            found = ", ".join(f"{row['id']} (of {row['organization']})" for row in rows)
            raise FieldError("tenant", f"{len(rows)} tenants are named {name_or_id!r}, give an id: {found}")


async def _write(connection: AnyConnection, action: str, change: tuple[Tenant, Tenant], trail: Trail) -> Tenant:
    before, after = change
    old, new = difference(_facts(before), _facts(after))
    if not new:
        return before
    values = _column_values({name: getattr(after, name) for name in _FIELDS})
    try:
        await connection.execute(_UPDATE, after.id, *values, after.suspended_at)
    except asyncpg.UniqueViolationError:
        raise _taken(after.organization, after.name) from None
    await trail.append(connection, _audited(action, after, old, new))
    return after


def _checked(asked: NewTenant | TenantChanges, tenant_id: str) -> dict[str, Any]:
    """What was asked for of each of `_FIELDS`, as it is stored; what is None is left out."""
    fields = {name: value for name in _FIELDS if (value := getattr(asked, name)) is not None}
    checks: dict[str, Callable[[Any], object]] = {
        "name": lambda name: checked("name", name),
        "limits": lambda limits: checked_limits("limits", limits),
        "time_zone": time_zone.checked,
        "networks": _networks,
        "routing_policy": lambda policy: canonical_text(policy, tenant_id=tenant_id),
    }
    return {name: checks[name](value) if name in checks else value for name, value in fields.items()}


def _networks(texts: Iterable[str]) -> tuple[str, ...]:
    try:
        networks = tuple(sorted({network.parse(text) for text in texts}))
    except ValueError as error:
        raise FieldError("networks", str(error)) from None
    if len(networks) > MAX_NETWORKS:
        raise FieldError("networks", f"{len(networks):,} are too many; at most {MAX_NETWORKS}")
    return networks


def _column_values(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    encoded = {**fields, "limits": encode_limits(fields["limits"])}
    return tuple(encoded[name] for name in _FIELDS)


def _facts(tenant: Tenant) -> Facts:
    """What people have decided about the tenant, as the audit trail keeps it."""
    facts = {name: getattr(tenant, name) for name in (*_FIELDS, "organization_id", "suspended_at")}
    policy = tenant.routing_policy
    return {**facts, "routing_policy": None if policy is None else json.loads(policy)}


def _audited(action: str, tenant: Tenant, before: Facts | None = None, after: Facts | None = None) -> Change:
    return Change(
        action=f"tenant.{action}", subject=f"tenant:{tenant.id}", tenant_id=tenant.id, before=before, after=after
    )


def _taken(organization: str, name: str) -> FieldError:
    return FieldError("name", f"the organization {organization!r} has a tenant {name!r} already")


def _tenant(row: asyncpg.Record) -> Tenant:
    policy = row["routing_policy"]
    stored = {
        "limits": decode_limits(row["limits"]),
        "networks": tuple(row["networks"]),
        "routing_policy": None if policy is None else stored_text(policy),
    }
    return Tenant(**{**row, **stored})
