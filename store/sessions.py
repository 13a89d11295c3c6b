"""How are sessions kept for all workers? In Redis, by a keyed hash of their tokens; one script for each operation.

A script runs alone: a session is made either before all of its principal's are revoked, and is among them, or after.
The record of a session ends by itself; an index names those of a principal. Both are in the principal's shard.
"""

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from authz.derived_key import derived_key
from authz.session import MAX_SESSIONS_PER_PRINCIPAL, Session, SessionOutage, SessionToken, keyed_hash
from quota.pipe import Argument, Pipe
from quota.redis import key_of, shard_of
from quota.reservation import QuotaOutage
from quota.scripts import Script, load, run

_CREATE, _FIND = load("session_create", "store"), load("session_find", "store")
_LIST, _REVOKE = load("session_list", "store"), load("session_revoke", "store")
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Session)
_FIELDS = 4
_SEAL_BYTES = 32
_ALL = ""


class RedisSessions:
    """Sessions in Redis. `pepper` keys the hashes; the pipe is its owner's to close."""

    def __init__(self, pipe: Pipe, *, pepper: bytes) -> None:
        self._pipe = pipe
        self._pepper = pepper

    async def create(self, token: SessionToken, session: Session) -> bool:
        """See `Sessions.create`."""
        shard = shard_of(session.principal_id)
        if (token.shard, token.id) != (shard, session.id):
            raise ValueError("the token is of another session, or in another shard than its principal")
        found = self._hash(token)
        keys = [_records(shard) + found, _indexes(shard) + session.principal_id]
        lifetime_ms = session.expires_ms - session.created_ms
        arguments: list[Argument] = [
            *(_member(token, found), self._sealed(found, session), session.principal_id),
            *(lifetime_ms, session.idle_ms, MAX_SESSIONS_PER_PRINCIPAL),
        ]
        return bool(await self._run(_CREATE, keys, arguments))

    async def find(self, token: SessionToken) -> Session | None:
        """See `Sessions.find`."""
        found = self._hash(token)
        keys = [_records(token.shard) + found]
        answer = await self._run(_FIND, keys, [_member(token, found), _indexes(token.shard)])
        if answer is None or not hmac.compare_digest(
            answer[0][:_SEAL_BYTES], self._seal(found, answer[0][_SEAL_BYTES:])
        ):
            return None
        return _session(answer)

    async def list_of(self, principal_id: str) -> list[Session]:
        """See `Sessions.list_of`."""
        shard = shard_of(principal_id)
        flat = await self._run(_LIST, [_indexes(shard) + principal_id], [_records(shard)])
        read = (_session(flat[at : at + _FIELDS]) for at in range(0, len(flat), _FIELDS))
        return sorted((one for one in read if one is not None), key=_age)

    async def revoke(self, principal_id: str, session_id: str) -> bool:
        """See `Sessions.revoke`."""
        return bool(session_id) and await self._revoke(principal_id, session_id) > 0

    async def revoke_all(self, principal_id: str) -> int:
        """See `Sessions.revoke_all`."""
        return await self._revoke(principal_id, _ALL)

    async def _revoke(self, principal_id: str, session_id: str) -> int:
        shard = shard_of(principal_id)
        return int(await self._run(_REVOKE, [_indexes(shard) + principal_id], [_records(shard), session_id]))

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        try:
            return await run(self._pipe, script, keys, arguments)
        except QuotaOutage as error:
            raise SessionOutage(str(error)) from error

    def _sealed(self, found: str, session: Session) -> bytes:
        text = _ENCODER.encode(session)
        return self._seal(found, text) + text

    def _seal(self, found: str, text: bytes) -> bytes:
        """Whoever can write Redis, and has not the pepper, makes no session and moves none to another token."""
        return hmac.digest(derived_key(self._pepper, "session-record"), found.encode() + text, "sha256")

    def _hash(self, token: SessionToken) -> str:
        return keyed_hash(token, self._pepper).hex()


def _records(shard: int) -> str:
    return key_of(shard, "session", "")


def _indexes(shard: int) -> str:
    return key_of(shard, "sessions", "")


def _member(token: SessionToken, found: str) -> str:
    return f"{token.id}:{found}"


def _session(answer: Sequence[Any]) -> Session | None:
    """The stored session at its true times; None when a newer or older gateway wrote it and it cannot be read."""
    text, created_ms, expires_ms, last_used_ms = answer
    try:
        stored = _DECODER.decode(text[_SEAL_BYTES:])
    except msgspec.DecodeError:
        return None
    return replace(stored, created_ms=created_ms, expires_ms=expires_ms, last_used_ms=last_used_ms)


def _age(session: Session) -> tuple[int, str]:
    return -session.created_ms, session.id
