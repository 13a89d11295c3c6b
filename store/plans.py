"""Which plans are there, and what limits does each put on its tenants?"""

from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import msgspec

from authz.caps import NO_CAPS, Caps
from authz.principal import DEFAULT_PRIORITY, HIGHEST_PRIORITY, LOWEST_PRIORITY, Metering
from quota.limit import Limit
from store.audit import AnyConnection, Change, Trail
from store.caps import CAPS, as_columns, caps_of, checked_caps
from store.database import Pool, outages_named
from store.difference import Facts, difference
from store.field_error import FieldError
from store.limits import checked_limits, decode_limits, encode_limits
from store.name import checked, listed

_SELECT = """
SELECT name, limits, metering, priority, max_stream_seconds, max_output_tokens, max_response_bytes FROM plans"""
_LOCK = f"{_SELECT} WHERE name = $1 FOR UPDATE"
_INSERT = """
INSERT INTO plans (name, limits, metering, priority, max_stream_seconds, max_output_tokens, max_response_bytes)
VALUES ($1, $2::jsonb, $3, $4, $5, $6, $7) ON CONFLICT (name) DO NOTHING"""
_UPDATE = """
UPDATE plans SET limits = $2::jsonb, metering = $3, priority = $4, max_stream_seconds = $5, max_output_tokens = $6,
    max_response_bytes = $7
WHERE name = $1"""
_TENANTS = """
SELECT o.name || '/' || t.name || CASE WHEN t.deleted_at IS NULL THEN '' ELSE ' (deleted)' END
FROM tenants t JOIN organizations o ON o.id = t.organization_id
WHERE t.plan = $1 ORDER BY t.deleted_at IS NOT NULL, o.name, t.name"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a tenant may use, what one request may come to, and how streams are metered.

    Under overload, tenants of a lower `priority`, 0 to 9, are refused first.
    """

    name: str
    limits: tuple[Limit, ...]
    metering: Metering = Metering.NATIVE
    priority: int = DEFAULT_PRIORITY
    caps: Caps = NO_CAPS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChanges:
    """What is to be different; None leaves it as it is. `limits` are all that the plan then has.

    The last three are its `caps`, each for itself; 0 removes one.
    """

    limits: tuple[Limit, ...] | None = None
    metering: Metering | None = None
    priority: int | None = None
    stream_seconds: int | None = None
    output_tokens: int | None = None
    response_bytes: int | None = None


async def list_plans(pool: Pool) -> list[Plan]:
    """Return every plan, by name."""
    with outages_named():
        return [_plan(row) for row in await pool.fetch(f"{_SELECT} ORDER BY name")]


async def find_plan(pool: Pool, name: str) -> Plan:
    """Return the plan; raises `FieldError` when there is none of this name."""
    with outages_named():
        async with pool.acquire() as connection:
            return await _find(connection, f"{_SELECT} WHERE name = $1", name)


async def check_plan(connection: AnyConnection, name: str) -> None:
    """Raise `FieldError` when there is no such plan; one that there is stays until the transaction ends."""
    await _find(connection, f"{_SELECT} WHERE name = $1 FOR KEY SHARE", name)


async def create(pool: Pool, plan: Plan, *, trail: Trail) -> Plan:
    """Create the plan; raises `FieldError` when the name is taken or it makes no sense."""
    made = _checked(plan)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            if not await _inserted(connection, made, trail):
                raise FieldError("plan", f"there is one named {plan.name!r} already")
    return made


async def put(pool: Pool, plan: Plan, *, trail: Trail) -> None:
    """Create the plan, or make the one of this name as it is; raises `FieldError` when it makes no sense."""
    wanted = _checked(plan)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            if not await _inserted(connection, wanted, trail):
                await _write(connection, await _find(connection, _LOCK, plan.name), wanted, trail)


async def update(pool: Pool, name: str, changes: PlanChanges, *, trail: Trail) -> Plan:
    """Change the plan, for all its tenants, from their next request on. Raises `FieldError`."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            before = await _find(connection, _LOCK, name)
            after = _changed(before, changes)
            await _write(connection, before, after, trail)
    return after


async def delete(pool: Pool, name: str, *, trail: Trail) -> Plan:
    """Delete the plan; raises `FieldError` when there is none, or when tenants are or were on it."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            plan = await _find(connection, _LOCK, name)
            if tenants := await connection.fetch(_TENANTS, name):
                raise FieldError("plan", f"{name!r} has tenants: {listed(row[0] for row in tenants)}")
            await connection.execute("DELETE FROM plans WHERE name = $1", name)
            await trail.append(connection, _audited("delete", name, before=_facts(plan)))
    return plan


async def _inserted(connection: AnyConnection, plan: Plan, trail: Trail) -> bool:
    made = await connection.execute(_INSERT, *_column_values(plan))
    if made != "INSERT 0 1":
        return False
    await trail.append(connection, _audited("create", plan.name, after=_facts(plan)))
    return True


async def _find(connection: AnyConnection, query: str, name: str) -> Plan:
    row = await connection.fetchrow(query, name)
    if row is None:
        known = ", ".join(row["name"] for row in await connection.fetch("SELECT name FROM plans ORDER BY name"))
        raise FieldError("plan", f"there is no plan {name[:110]!r}; there are: {known}")
    return _plan(row)


async def _write(connection: AnyConnection, before: Plan, after: Plan, trail: Trail) -> None:
    old, new = difference(_facts(before), _facts(after))
    if new:
        await connection.execute(_UPDATE, *_column_values(after))
        await trail.append(connection, _audited("update", after.name, old, new))


def _changed(plan: Plan, changes: PlanChanges) -> Plan:
    # What was not asked for is not checked.
    limits = plan.limits if changes.limits is None else checked_limits("limits", changes.limits)
    priority = plan.priority if changes.priority is None else _checked_priority(changes.priority)
    caps = {name: value for name in CAPS if (value := getattr(changes, name)) is not None}
    return replace(
        plan,
        limits=limits,
        metering=changes.metering or plan.metering,
        priority=priority,
        caps=checked_caps(msgspec.structs.replace(plan.caps, **caps)),
    )


def _checked(plan: Plan) -> Plan:
    checked("plan", plan.name)
    _checked_priority(plan.priority)
    checked_caps(plan.caps)
    return replace(plan, limits=checked_limits("limits", plan.limits))


def _checked_priority(priority: int) -> int:
    if not LOWEST_PRIORITY <= priority <= HIGHEST_PRIORITY:
        raise FieldError("priority", f"must be from {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, not {priority}")
    return priority


def _column_values(plan: Plan) -> tuple[Any, ...]:
    return plan.name, encode_limits(plan.limits), plan.metering, plan.priority, *as_columns(plan.caps).values()


def _facts(plan: Plan) -> Facts:
    return {
        "limits": plan.limits,
        "metering": plan.metering,
        "priority": plan.priority,
        **as_columns(plan.caps),
    }


def _audited(action: str, name: str, before: Facts | None = None, after: Facts | None = None) -> Change:
    return Change(action=f"plan.{action}", subject=f"plan:{name}", before=before, after=after)


def _plan(row: asyncpg.Record) -> Plan:
    return Plan(
        name=row["name"],
        limits=decode_limits(row["limits"]),
        metering=Metering(row["metering"]),
        priority=row["priority"],
        caps=caps_of(row),
    )
