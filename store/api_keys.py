"""Which API keys are there, and how are they made, changed, rotated and revoked? Never stored: the key itself.

What a key is made of is in `authz/api_key.py`; what a request's key is checked against, in `store/directory.py`.
Every change and its row in the audit trail are one transaction; a change that changes nothing leaves no row.
"""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeAlias

import asyncpg

from authz.api_key import ApiKey, keyed_hash
from store import permissions
from store.audit import Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.difference import difference
from store.field_error import FieldError
from store.name import checked
from store.permissions import PermissionChanges, Permissions

LONGEST_OVERLAP = timedelta(days=30)
_SELECT = """
SELECT k.id, k.tenant_id, t.name AS tenant, k.name, k.tag, k.scopes, k.roles, k.models, k.networks, k.limits,
       k.expires_at, k.suspended_at, k.rotated_at, k.previous_expires_at, k.revoked_at, u.last_used_at, k.created_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id LEFT JOIN key_uses u ON u.key_id = k.id"""
# Not FOR UPDATE: that would hold up the rows of key_uses that refer to the key.
_LOCK = f"{_SELECT} WHERE k.id = $1 FOR NO KEY UPDATE OF k"
_LOCK_TENANT = "SELECT id FROM tenants WHERE id = $1 AND deleted_at IS NULL FOR SHARE"
_INSERT = """
INSERT INTO api_keys (id, tenant_id, name, tag, hash, expires_at, scopes, roles, models, networks, limits)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"""
_UPDATE = """
UPDATE api_keys SET name = $2, expires_at = $3, suspended_at = $4,
       scopes = $5, roles = $6, models = $7, networks = $8, limits = $9 WHERE id = $1"""
_ROTATE = """
UPDATE api_keys SET hash = $2, rotated_at = $3, previous_expires_at = $4,
       previous_hash = CASE WHEN $4::timestamptz IS NOT NULL THEN hash END WHERE id = $1"""
_REVOKE = "UPDATE api_keys SET revoked_at = $2, previous_hash = NULL, previous_expires_at = NULL WHERE id = $1"
# Facts of a key that are not what a person decides about it.
_UNDECIDED = {"id", "tenant_id", "tenant", "last_used_at", "created_at"}


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey(Permissions):
    """What is known of a key; not enough to use it. Until `previous_expires_at` the secret before this one works."""

    id: str
    tenant_id: str
    tenant: str
    name: str
    tag: str
    expires_at: datetime | None
    suspended_at: datetime | None
    rotated_at: datetime | None
    previous_expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime

    def state(self, now: datetime) -> KeyState:
        """Whether the key opens anything at this time, its tenant aside."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE if self.suspended_at is None else KeyState.SUSPENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey(Permissions):
    """A generated key, for whom it is, what it may do (with no scopes and roles: inference), and until when."""

    key: ApiKey
    tenant_id: str
    name: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanges(PermissionChanges):
    """What is to be different; None leaves a field as it is."""

    name: str | None = None
    expires_at: datetime | None = None
    never_expires: bool = False
    """Takes the key's end away, whatever `expires_at` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A key generated with the id and tag of another, and how long that one's secret goes on beside it."""

    key: ApiKey
    overlap: timedelta


@dataclass(frozen=True, slots=True)
class KeyChange:
    """The key afterwards. `changed` is false when it was so already."""

    key: StoredKey
    changed: bool


@dataclass(frozen=True, slots=True)
class Rotation:
    """The key afterwards. `cut_short` is until when the secret before the former would still have worked."""

    key: StoredKey
    cut_short: datetime | None


_Locked: TypeAlias = tuple[PooledConnection, StoredKey]


async def create(pool: Pool, new: NewKey, *, pepper: bytes, trail: Trail) -> StoredKey:
    """Store the key's id and keyed hash; raises `FieldError` for what it cannot be, an unknown tenant included."""
    key = new.key
    asked = permissions.checked(permissions.with_default_role(new))
    identity = (key.id, new.tenant_id, checked("name", new.name), key.tag, keyed_hash(key.text, pepper))
    with outages_named():
        try:
            async with pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_LOCK_TENANT, new.tenant_id) is None:
                    raise FieldError("tenant", f"there is no tenant {new.tenant_id!r}")
                await permissions.check_roles(connection, asked.roles)
                await connection.execute(_INSERT, *identity, new.expires_at, *permissions.column_values(asked))
                stored = await _find(connection, key.id, f"{_SELECT} WHERE k.id = $1")
                await trail.append(connection, _audited("create", stored, after=_decided(stored)))
        except asyncpg.UniqueViolationError:
            raise FieldError("key", f"{key.id} is stored already") from None
    return stored


async def find(pool: Pool, key_id: str) -> StoredKey:
    """Return the key with this public id; raises `FieldError` when there is none."""
    with outages_named():
        async with pool.acquire() as connection:
            return await _find(connection, key_id, f"{_SELECT} WHERE k.id = $1")


async def list_keys(pool: Pool, *, tenant_id: str | None = None) -> list[StoredKey]:
    """Return every key, or those of one tenant, oldest first."""
    with outages_named():
        if tenant_id is None:
            rows = await pool.fetch(f"{_SELECT} ORDER BY k.created_at, k.id")
        else:
            rows = await pool.fetch(f"{_SELECT} WHERE k.tenant_id = $1 ORDER BY k.created_at, k.id", tenant_id)
    return [StoredKey(**permissions.fields_of(row)) for row in rows]


async def update(pool: Pool, key_id: str, changes: KeyChanges, *, trail: Trail) -> KeyChange:
    """Change what a key is called and may do; raises `FieldError` when it is unknown or revoked, or cannot be so."""

    def wanted(before: StoredKey) -> StoredKey:
        name = before.name if changes.name is None else checked("name", changes.name)
        ends = None if changes.never_expires else changes.expires_at or before.expires_at
        return replace(permissions.changed(before, changes), name=name, expires_at=ends)

    return await _change(pool, key_id, "update", wanted, trail=trail)


async def suspend(pool: Pool, key_id: str, *, now: datetime, trail: Trail) -> KeyChange:
    """Refuse the key until it is resumed; raises `FieldError` when it is unknown or revoked."""
    return await _change(
        pool, key_id, "suspend", lambda key: replace(key, suspended_at=key.suspended_at or now), trail=trail
    )


async def resume(pool: Pool, key_id: str, *, trail: Trail) -> KeyChange:
    """Let a suspended key in again; raises `FieldError` when it is unknown or revoked."""
    return await _change(pool, key_id, "resume", lambda key: replace(key, suspended_at=None), trail=trail)


async def rotate(pool: Pool, new: NewSecret, *, pepper: bytes, now: datetime, trail: Trail) -> Rotation:
    """Give the key of this id a new secret; its former one works until the overlap ends, with none not at all.

    A key has two secrets at most: an overlap that still runs from an earlier rotation ends now. Raises `FieldError`
    when the key is unknown or revoked, has another tag, or the overlap is not between 0 and `LONGEST_OVERLAP`.
    """
    if not timedelta(0) <= new.overlap <= LONGEST_OVERLAP:
        raise FieldError("overlap", f"must be from 0 to {LONGEST_OVERLAP.days} days")
    async with _locked(pool, new.key.id) as (connection, before):
        _refuse_revoked(before)
        if new.key.tag != before.tag:
            raise FieldError("tag", f"is {before.tag!r} and stays so, not {new.key.tag!r}")
        until = now + new.overlap if new.overlap else None
        await connection.execute(_ROTATE, before.id, keyed_hash(new.key.text, pepper), now, until)
        after = replace(before, rotated_at=now, previous_expires_at=until)
        await trail.append(connection, _audited("rotate", after, *_difference(before, after)))
    running = before.previous_expires_at is not None and before.previous_expires_at > now
    return Rotation(after, cut_short=before.previous_expires_at if running else None)


async def revoke(pool: Pool, key_id: str, *, now: datetime, trail: Trail) -> KeyChange:
    """Make the key useless from now on, all its secrets; again changes nothing. Raises `FieldError` when unknown."""
    async with _locked(pool, key_id) as (connection, before):
        if before.revoked_at is not None:
            return KeyChange(before, changed=False)
        await connection.execute(_REVOKE, key_id, now)
        after = replace(before, revoked_at=now, previous_expires_at=None)
        await trail.append(connection, _audited("revoke", after, *_difference(before, after)))
    return KeyChange(after, changed=True)


async def _change(
    pool: Pool, key_id: str, action: str, wanted: Callable[[StoredKey], StoredKey], *, trail: Trail
) -> KeyChange:
    async with _locked(pool, key_id) as (connection, before):
        _refuse_revoked(before)
        after = wanted(before)
        if after == before:
            return KeyChange(before, changed=False)
        # A role it has may be gone meanwhile; only new ones must exist.
        await permissions.check_roles(connection, tuple(set(after.roles) - set(before.roles)))
        values = (after.name, after.expires_at, after.suspended_at, *permissions.column_values(after))
        await connection.execute(_UPDATE, key_id, *values)
        await trail.append(connection, _audited(action, after, *_difference(before, after)))
    return KeyChange(after, changed=True)


@contextlib.asynccontextmanager
async def _locked(pool: Pool, key_id: str) -> AsyncIterator[_Locked]:
    """A transaction in which nobody else changes the key."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            yield connection, await _find(connection, key_id, _LOCK)


async def _find(connection: PooledConnection, key_id: str, query: str) -> StoredKey:
    row = await connection.fetchrow(query, key_id)
    if row is None:
        raise FieldError("key", f"there is no key {key_id[:80]!r}")
    return StoredKey(**permissions.fields_of(row))


def _refuse_revoked(key: StoredKey) -> None:
    if key.revoked_at is not None:
        raise FieldError("key", f"{key.id} is revoked, and that is for good")


def _decided(key: StoredKey) -> dict[str, Any]:
    """What people have decided about the key, as the audit trail keeps it."""
    return {field.name: getattr(key, field.name) for field in fields(key) if field.name not in _UNDECIDED}


def _difference(before: StoredKey, after: StoredKey) -> tuple[dict[str, Any], dict[str, Any]]:
    return difference(_decided(before), _decided(after))


def _audited(
    action: str, key: StoredKey, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
) -> Change:
    return Change(action=f"key.{action}", subject=f"key:{key.id}", tenant_id=key.tenant_id, before=before, after=after)
