"""Who changed or tried what, from where, and when? Each is a row of the audit trail, chained to the row before it.

    hash = HMAC-SHA256(key from the pepper, previous hash || canonical JSON of the row)

Whoever can write the table but has not the pepper can make no row that fits. `store/audit_reader.py` walks the chain.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import msgspec

from authz.derived_key import derived_key
from store.database import Connection, Pool, PooledConnection, outages_named

GENESIS = bytes(32)
"""The previous hash of the first row, and the head of an empty chain."""
_LOCK = 0x696777_6175646974  # "igw" and "audit"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_JSON_BITS = 63
_SECRET_FIELDS = frozenset({"hash", "previous_hash", "secret", "private_key", "pepper", "password", "token", "cookie"})

# What jsonb makes of a text (numbers, order and repetition of keys); the same text again when it is asked for later.
_AS_STORED = """
SELECT before::jsonb::text AS before, after::jsonb::text AS after
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS given (before, after, place) ORDER BY place"""
_LAST = "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1"
_INSERT = """
INSERT INTO audit (at, number, actor, action, subject, tenant_id, source, request_id, before, after,
                   previous_hash, hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10::jsonb, $11, $12)"""

AnyConnection: TypeAlias = "Connection | PooledConnection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who acts: `cli:root`, a principal's id, `system`; and from which host or client address."""

    name: str
    source: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done, such as `key.create` or `credential.refused`, to what, such as `key:7Kq2...` or `tenant:ten_...`.

    `before` and `after` are JSON objects, with times, enums and sets as well, and hold no secret: a field that is
    named like one is a `ValueError`.
    """

    action: str
    subject: str
    tenant_id: str | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if secret := _SECRET_FIELDS.intersection({*(self.before or ()), *(self.after or ())}):
            raise ValueError(f"{self.action} would write a secret into the audit trail: {', '.join(sorted(secret))}")


class Trail:
    """Where the changes of one actor are written."""

    def __init__(self, actor: Actor, *, pepper: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`now` gives aware times."""
        self._actor = actor
        self._key = chain_key(pepper)
        self._now = now

    async def append(self, connection: AnyConnection, *changes: Change) -> None:
        """Write the changes in the caller's transaction, as its last step: nobody else can append until it ends.

        Raises `DatabaseOutage`.
        """
        at = self._now()
        await _append(connection, [(self._actor, at, change) for change in changes], self._key)


async def append_all(pool: Pool, entries: Sequence[tuple[Actor, datetime, Change]], *, pepper: bytes) -> None:
    """Write a batch of who, when and what, all or none; raises `DatabaseOutage`."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            await _append(connection, entries, chain_key(pepper))


def chain_key(pepper: bytes) -> bytes:
    """The key of the chain's hashes."""
    return derived_key(pepper, "audit")


def link(key: bytes, previous_hash: bytes, facts: Mapping[str, object]) -> bytes:
    """The hash of a row: of its facts, by their names, and of the hash before it."""
    return hmac.digest(key, previous_hash + msgspec.json.encode(facts, order="sorted"), "sha256")


async def _append(connection: AnyConnection, entries: Sequence[tuple[Actor, datetime, Change]], key: bytes) -> None:
    if not connection.is_in_transaction():
        raise RuntimeError("an audit row is written in the transaction of its change")
    befores = [_json(change.before) for _, _, change in entries]
    afters = [_json(change.after) for _, _, change in entries]
    with outages_named():
        stored = await connection.fetch(_AS_STORED, befores, afters)
        # The last row is read under the lock, by a statement of its own: its snapshot must be younger than the lock.
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        last = await connection.fetchrow(_LAST)
        number, head = (0, GENESIS) if last is None else (last["number"], last["hash"])
        rows = []
        for entry, texts in zip(entries, stored, strict=True):
            number += 1
            facts = _facts(number, entry, dict(texts))
            previous, head = head, link(key, head, facts)
            _, *values = facts.values()
            rows.append((entry[1], *values, previous, head))
        await connection.executemany(_INSERT, rows)


def _facts(number: int, entry: tuple[Actor, datetime, Change], texts: Mapping[str, str | None]) -> dict[str, Any]:
    """What the hash of a row covers, beside the hash before it. Time is in microseconds since the epoch."""
    actor, at, change = entry
    return {
        "at_us": str((at - _EPOCH) // _MICROSECOND),
        "number": number,
        "actor": _storable(actor.name),
        "action": change.action,
        "subject": _storable(change.subject),
        "tenant_id": _storable(change.tenant_id),
        "source": _storable(actor.source),
        "request_id": _storable(actor.request_id),
        **texts,
    }


def _json(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    return msgspec.json.encode(_storable(msgspec.to_builtins(value, str_keys=True, order="sorted"))).decode()


def _storable(value: Any) -> Any:
    """The same without what Postgres' text cannot hold (U+0000, half a surrogate pair); long numbers become text."""
    match value:
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
        case dict():
            return {_storable(name): _storable(item) for name, item in value.items()}
        case list():
            return [_storable(item) for item in value]
        case int() if value.bit_length() > _JSON_BITS:
            return str(value)
        case _:
            return value
