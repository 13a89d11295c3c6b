"""Which request holds an idempotency key, and what was its answer? One unique row in Postgres for each key in use."""

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from extproc.idempotency import Answer, Earlier, IdempotencyOutage, KeyedRequest
from extproc.lifecycle import State
from store import ledger
from store.database import DatabaseOutage, Pool, outages_named, within

T = TypeVar("T")

_SECONDS = 0.8
_BATCH = 1000

# A row that has expired counts for nothing, whether it has been deleted yet or not.
_CLAIM = """
INSERT INTO idempotency_keys AS held (tenant_id, principal_id, key, request_id, fingerprint, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + $6)
ON CONFLICT (tenant_id, principal_id, key) DO UPDATE
SET request_id = excluded.request_id, fingerprint = excluded.fingerprint, claimed_at = excluded.claimed_at,
    expires_at = excluded.expires_at, admitted = false, status = NULL, content_type = NULL, body = NULL
WHERE held.expires_at <= now()
RETURNING request_id"""
_FIND = """
SELECT request_id, fingerprint, (extract(epoch FROM now() - claimed_at) * 1000)::bigint AS age_ms,
       admitted, status, content_type, body
FROM idempotency_keys WHERE tenant_id = $1 AND principal_id = $2 AND key = $3 AND expires_at > now()"""
_TAKE_OVER = """
UPDATE idempotency_keys
SET request_id = $4, fingerprint = $5, claimed_at = now(), expires_at = now() + $6, admitted = false
WHERE tenant_id = $1 AND principal_id = $2 AND key = $3 AND request_id = $7 AND body IS NULL"""
_ADMITTED = """
UPDATE idempotency_keys SET admitted = true
WHERE tenant_id = $1 AND principal_id = $2 AND key = $3 AND request_id = $4"""
_FREE = """
DELETE FROM idempotency_keys
WHERE tenant_id = $1 AND principal_id = $2 AND key = $3 AND request_id = $4 AND body IS NULL"""
_RECORD = """
UPDATE idempotency_keys SET status = $5, content_type = $6, body = $7
WHERE tenant_id = $1 AND principal_id = $2 AND key = $3 AND request_id = $4"""
_DELETE_EXPIRED = """
DELETE FROM idempotency_keys WHERE (tenant_id, principal_id, key) IN (
    SELECT tenant_id, principal_id, key FROM idempotency_keys WHERE expires_at <= now() LIMIT $1
    FOR UPDATE SKIP LOCKED)"""


class PostgresIdempotencyKeys:
    """See `IdempotencyKeys`. A key is held for `lifetime` from its claim."""

    def __init__(self, pool: Pool, *, lifetime: timedelta) -> None:
        self._pool = pool
        self._lifetime = lifetime

    async def claim(self, request: KeyedRequest) -> Earlier | None:
        """See `IdempotencyKeys.claim`. Asked again for the same request, answers the same."""
        return await _in_time(self._claim(request))

    async def take_over(self, request: KeyedRequest, earlier: str) -> bool:
        """See `IdempotencyKeys.take_over`."""
        values = (*_name(request), request.request_id, request.fingerprint, self._lifetime, earlier)
        return await _in_time(self._changed(_TAKE_OVER, *values))

    async def admitted(self, request: KeyedRequest) -> None:
        """See `IdempotencyKeys.admitted`."""
        await _in_time(self._changed(_ADMITTED, *_name(request), request.request_id))

    async def free(self, request: KeyedRequest) -> None:
        """See `IdempotencyKeys.free`."""
        await _in_time(self._changed(_FREE, *_name(request), request.request_id))

    async def record(self, request: KeyedRequest, answer: Answer) -> bool:
        """See `IdempotencyKeys.record`."""
        values = (request.request_id, answer.status, answer.content_type, answer.body)
        return await _in_time(self._changed(_RECORD, *_name(request), *values))

    async def ended(self, request_id: str) -> State | None:
        """See `IdempotencyKeys.ended`."""
        record = await _in_time(ledger.find(self._pool, request_id))
        return None if record is None else record.ending.state

    async def _claim(self, request: KeyedRequest) -> Earlier | None:
        name = _name(request)
        while True:  # until the deadline: a key that is freed again and again is claimed at last
            with outages_named():
                claimed = await self._pool.fetchval(
                    _CLAIM, *name, request.request_id, request.fingerprint, self._lifetime
                )
                if claimed is not None:
                    return None
                row = await self._pool.fetchrow(_FIND, *name)
            if row is None:
                continue
            return None if row["request_id"] == request.request_id else _earlier(row)

    async def _changed(self, statement: str, *values: object) -> bool:
        with outages_named():
            tag = await self._pool.execute(statement, *values)
        return not tag.endswith(" 0")


async def delete_expired(pool: Pool) -> int:
    """Delete the rows that count for nothing any more, some at a time; returns how many. Raises `DatabaseOutage`."""
    deleted = 0
    while True:
        with outages_named():
            tag = await pool.execute(_DELETE_EXPIRED, _BATCH)
        batch = int(tag.rpartition(" ")[2])
        deleted += batch
        if batch < _BATCH:
            return deleted


def _name(request: KeyedRequest) -> tuple[str, str, str]:
    return request.tenant_id, request.principal_id, request.key


def _earlier(row: Any) -> Earlier:
    answer = None
    if row["body"] is not None:
        answer = Answer(status=row["status"], content_type=row["content_type"], body=row["body"])
    return Earlier(
        request_id=row["request_id"],
        fingerprint=row["fingerprint"],
        age_ms=row["age_ms"],
        admitted=row["admitted"],
        answer=answer,
    )


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await within(_SECONDS, work)
    except DatabaseOutage as error:
        raise IdempotencyOutage(str(error)) from error
