"""Which API keys are there, and how are they made and revoked? Never stored: the key itself.

What a key is made of is in `authz/api_key.py`; what a request's key is checked against, in `store/directory.py`.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from authz.api_key import ApiKey, keyed_hash
from store.database import Pool, outages_named
from store.field_error import FieldError
from store.name import checked

_SELECT = """
SELECT k.id, k.tenant_id, t.name AS tenant, k.name, k.tag, k.expires_at, k.revoked_at, k.created_at
FROM api_keys k JOIN tenants t ON t.id = k.tenant_id"""
_INSERT = "INSERT INTO api_keys (id, tenant_id, name, tag, hash, expires_at) VALUES ($1, $2, $3, $4, $5, $6)"
_REVOKE = "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING id"


class KeyState(StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """What is known of a key; not enough to use it."""

    id: str
    tenant_id: str
    tenant: str
    name: str
    tag: str
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime

    def state(self, now: datetime) -> KeyState:
        """Whether the key opens anything at this time, its tenant aside."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A generated key, for whom it is, and until when (None: for ever)."""

    key: ApiKey
    tenant_id: str
    name: str
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revocation:
    """What a revocation did. `was_active` is false when the key had been revoked before; its time then stays."""

    key: StoredKey
    was_active: bool


async def create(pool: Pool, new: NewKey, *, pepper: bytes) -> StoredKey:
    """Store the key's id and keyed hash; raises `FieldError` when the tenant does not exist."""
    key = new.key
    hashed = keyed_hash(key.text, pepper)
    values = (key.id, new.tenant_id, checked("name", new.name), key.tag, hashed, new.expires_at)
    with outages_named():
        try:
            await pool.execute(_INSERT, *values)
        except asyncpg.ForeignKeyViolationError:
            raise FieldError("tenant", f"there is no tenant {new.tenant_id!r}") from None
        except asyncpg.UniqueViolationError:
            raise FieldError("key", f"{key.id} is stored already") from None
    return await find(pool, key.id)


async def find(pool: Pool, key_id: str) -> StoredKey:
    """Return the key with this public id; raises `FieldError` when there is none."""
    with outages_named():
        row = await pool.fetchrow(f"{_SELECT} WHERE k.id = $1", key_id)
    if row is None:
        raise FieldError("key", f"there is no key {key_id!r}")
    return StoredKey(**row)


async def list_keys(pool: Pool, *, tenant_id: str | None = None) -> list[StoredKey]:
    """Return every key, or those of one tenant, oldest first."""
    with outages_named():
        if tenant_id is None:
            rows = await pool.fetch(f"{_SELECT} ORDER BY k.created_at, k.id")
        else:
            rows = await pool.fetch(f"{_SELECT} WHERE k.tenant_id = $1 ORDER BY k.created_at, k.id", tenant_id)
    return [StoredKey(**row) for row in rows]


async def revoke(pool: Pool, key_id: str, *, now: datetime) -> Revocation:
    """Make the key useless from now on; revoking it again changes nothing. Raises `FieldError` when unknown."""
    with outages_named():
        revoked = await pool.fetchval(_REVOKE, key_id, now)
    return Revocation(await find(pool, key_id), was_active=revoked is not None)
