"""With which keys does the gateway sign, how are they kept, and how does the next one take over?

A private key is stored under AES-GCM with a key that comes from the pepper: a stolen dump signs nothing.
"""

import platform
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg
import msgspec

from authz.derived_key import derived_key
from authz.key_ring import KeyRing, SigningKey, from_private_bytes, generate, roll_over
from store.audit import Actor, Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.field_error import FieldError
from store.sealed import Unopened, seal, unseal

_PURPOSE = "signing-key"
_LOCK = 0x696777_7369676E  # "igw" and "sign"
_SIGNS = "SELECT 1 FROM signing_keys WHERE active_from <= $1 AND (retired_at IS NULL OR retired_at > $1)"
_LOAD = """
SELECT id, private_key, created_at, active_from, retired_at FROM signing_keys
WHERE retired_at IS NULL OR retired_at > $1"""
_LIST = (
    "SELECT id, created_at, active_from, retired_at FROM signing_keys ORDER BY active_from DESC, created_at DESC, id"
)
_INSERT = """
INSERT INTO signing_keys (id, public_key, private_key, created_at, active_from) VALUES ($1, $2, $3, $4, $5)"""
_RETIRE = """
UPDATE signing_keys SET retired_at = $1 WHERE retired_at IS NULL OR retired_at > $1
RETURNING id, retired_at"""


class SigningKeyState(StrEnum):
    """What a key does now."""

    NEXT = "next"  # published, and signs later
    SIGNING = "signing"
    PUBLISHED = "published"  # signs no more, for the tokens and copies that are under way
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSigningKey:
    """What anybody may know of a key."""

    id: str
    state: SigningKeyState
    created_at: datetime
    active_from: datetime
    retired_at: datetime | None


async def ensure(pool: Pool, pepper: bytes, now: datetime) -> None:
    """Make a key that signs at once, unless there is one that signs. Safe in several processes at the same time."""
    actor = Actor(name="system", source=platform.node())
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await _lock(connection)
            if await connection.fetchval(_SIGNS, now) is not None:
                return
            key = generate(created_at=now, active_from=now)
            await _insert(connection, key, pepper)
            await Trail(actor, pepper=pepper, now=lambda: now).append(connection, _created(key))


async def load(pool: Pool, pepper: bytes, now: datetime) -> KeyRing:
    """Return all keys that are not retired; raises `FieldError` when they were stored with another pepper."""
    with outages_named():
        rows = await pool.fetch(_LOAD, now)
    return KeyRing(tuple(_opened(row, pepper) for row in rows))


async def rotate(pool: Pool, pepper: bytes, trail: Trail, now: datetime, *, at_once: bool = False) -> SigningKey:
    """Make the next key; it signs when everybody can know it, and the former ones retire when nobody needs them.

    `at_once` is for a key that was stolen: the new one signs now, and what the former ones signed is refused by each
    Router as soon as it fetches the public keys. Otherwise raises `FieldError` when no key signs, or the present ones
    were stored with another pepper.
    """
    times = roll_over(now, at_once=at_once)
    key = generate(created_at=now, active_from=times.active_from)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await _lock(connection)
            if not at_once:
                await _require_signer(connection, pepper, now)
            retired = await connection.fetch(_RETIRE, times.former_retire_at)
            await _insert(connection, key, pepper)
            await trail.append(connection, _created(key), *(_retired(row) for row in retired))
    return key


async def list_keys(pool: Pool, now: datetime) -> list[StoredSigningKey]:
    """Return every key there ever was, the newest first."""
    with outages_named():
        rows = await pool.fetch(_LIST)
    signing = next((row["id"] for row in rows if row["active_from"] <= now and not _is_retired(row, now)), None)
    return [StoredSigningKey(**row, state=_state(row, now, signing)) for row in rows]


async def _require_signer(connection: PooledConnection, pepper: bytes, now: datetime) -> None:
    """A key stored with a wrong pepper would be of no use, and would keep the workers from loading the others."""
    ring = KeyRing(tuple(_opened(row, pepper) for row in await connection.fetch(_LOAD, now)))
    if ring.signer(now) is None:
        raise FieldError("signing-key", "no key signs now; make one that does: signing-key rotate --now")


async def _lock(connection: PooledConnection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)


async def _insert(connection: PooledConnection, key: SigningKey, pepper: bytes) -> None:
    jwk = msgspec.json.encode(key.jwk, order="sorted").decode()
    sealed = seal(key.private.private_bytes_raw(), key=derived_key(pepper, _PURPOSE), row=key.id)
    await connection.execute(_INSERT, key.id, jwk, sealed, key.created_at, key.active_from)


def _created(key: SigningKey) -> Change:
    after = {"created_at": key.created_at, "active_from": key.active_from}
    return Change(action="signing_key.create", subject=f"signing_key:{key.id}", after=after)


def _retired(row: asyncpg.Record) -> Change:
    after = {"retired_at": row["retired_at"]}
    return Change(action="signing_key.retire", subject=f"signing_key:{row['id']}", after=after)


def _opened(row: asyncpg.Record, pepper: bytes) -> SigningKey:
    key_id = row["id"]
    try:
        secret = unseal(row["private_key"], key=derived_key(pepper, _PURPOSE), row=key_id)
    except Unopened:
        raise FieldError(
            "pepper",
            f"the signing key {key_id} was not stored with this one; set the right one, or make a new key with "
            "this one: signing-key rotate --now",
        ) from None
    return from_private_bytes(
        secret, created_at=row["created_at"], active_from=row["active_from"], retired_at=row["retired_at"]
    )


def _is_retired(row: asyncpg.Record, now: datetime) -> bool:
    return row["retired_at"] is not None and row["retired_at"] <= now


def _state(row: asyncpg.Record, now: datetime, signing: str | None) -> SigningKeyState:
    if _is_retired(row, now):
        return SigningKeyState.RETIRED
    if row["active_from"] > now:
        return SigningKeyState.NEXT
    return SigningKeyState.SIGNING if row["id"] == signing else SigningKeyState.PUBLISHED
