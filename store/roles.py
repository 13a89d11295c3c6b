"""Which roles are there, and which scopes does each stand for?"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg

from authz.scope import Scope
from store.audit import AnyConnection, Change, Trail
from store.database import Pool, outages_named
from store.field_error import FieldError
from store.name import listed

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SELECT = "SELECT name, scopes, created_at FROM roles"
_LOCK = f"{_SELECT} WHERE name = $1 FOR UPDATE"
_INSERT = """
INSERT INTO roles (name, scopes) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING name, scopes, created_at"""
# An expired key can still have its life extended; a revoked one is gone for ever.
_HOLDERS = """
SELECT 'key ' || id FROM api_keys WHERE $1 = ANY (roles) AND revoked_at IS NULL
UNION ALL SELECT 'workload ' || certificate_name FROM workloads WHERE $1 = ANY (roles)
ORDER BY 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A named set of scopes, in the order of `authz.scope.Scope`."""

    name: str
    scopes: tuple[str, ...]
    created_at: datetime


async def list_roles(pool: Pool) -> list[Role]:
    """Return every role, by name."""
    with outages_named():
        return [_role(row) for row in await pool.fetch(f"{_SELECT} ORDER BY name")]


async def find_role(pool: Pool, name: str) -> Role:
    """Return the role; raises `FieldError` when there is none of this name."""
    with outages_named():
        async with pool.acquire() as connection:
            return await _find(connection, f"{_SELECT} WHERE name = $1", name)


async def create(pool: Pool, name: str, scopes: Iterable[str], *, trail: Trail) -> Role:
    """Create the role; raises `FieldError` for a name that is taken or cannot be one, and for what is no scope."""
    if not _NAME.fullmatch(name):
        raise FieldError("role", f"must be 1 to 63 of a-z, 0-9 and '-', and begin with a letter, not {name[:70]!r}")
    wanted = checked_scopes("scope", scopes)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(_INSERT, name, wanted)
            if row is None:
                raise FieldError("role", f"there is one named {name!r} already")
            await trail.append(connection, _audited("create", name, after=wanted))
    return _role(row)


async def update(pool: Pool, name: str, scopes: Iterable[str], *, trail: Trail) -> Role:
    """Let the role stand for these scopes from now on, for all who have it. Raises `FieldError`."""
    wanted = checked_scopes("scope", scopes)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            before = await _find(connection, _LOCK, name)
            if before.scopes != wanted:
                await connection.execute("UPDATE roles SET scopes = $2 WHERE name = $1", name, wanted)
                await trail.append(connection, _audited("update", name, before=before.scopes, after=wanted))
    return replace(before, scopes=wanted)


async def delete(pool: Pool, name: str, *, trail: Trail) -> Role:
    """Delete the role; raises `FieldError` when there is none, or while a key or a workload has it."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            role = await _find(connection, _LOCK, name)
            if holders := await connection.fetch(_HOLDERS, name):
                raise FieldError("role", f"{name!r} is held by: {listed(row[0] for row in holders)}")
            await connection.execute("DELETE FROM roles WHERE name = $1", name)
            await trail.append(connection, _audited("delete", name, before=role.scopes))
    return role


def checked_scopes(field: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the scopes, each once and in order. Raises `FieldError` for what is none, and for none at all."""
    given, valid = list(names), [scope.value for scope in Scope]
    for name in given:
        if name not in valid:
            raise FieldError(field, f"there is no scope {name[:60]!r}; there are: {', '.join(valid)}")
    if not given:
        raise FieldError(field, f"give at least one of: {', '.join(valid)}")
    return tuple(scope for scope in valid if scope in given)


async def _find(connection: AnyConnection, query: str, name: str) -> Role:
    row = await connection.fetchrow(query, name)
    if row is None:
        known = ", ".join(row["name"] for row in await connection.fetch("SELECT name FROM roles ORDER BY name"))
        raise FieldError("role", f"there is no role {name[:70]!r}; there are: {known}")
    return _role(row)


def _audited(
    action: str, name: str, *, before: tuple[str, ...] | None = None, after: tuple[str, ...] | None = None
) -> Change:
    return Change(
        action=f"role.{action}",
        subject=f"role:{name}",
        before=None if before is None else {"scopes": before},
        after=None if after is None else {"scopes": after},
    )


def _role(row: asyncpg.Record) -> Role:
    return Role(name=row["name"], scopes=tuple(row["scopes"]), created_at=row["created_at"])
