"""What does the audit trail say, and is it whole?

The chain shows what was changed, taken out or put in. That its tail was cut off shows only against a head that was
noted elsewhere. The key of the chain comes from the pepper: who has it can write the trail anew.
"""

import hmac
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg
import msgspec

from store.audit import GENESIS, chain_key, link
from store.database import Pool, outages_named

_BATCH = 500
# The time as a number: a forged one may be none that Python knows.
_CHAINED = """
SELECT trunc(extract(epoch FROM at) * 1000000)::text AS at_us, number, actor, action, subject, tenant_id, source,
       request_id, before::text AS before, after::text AS after, previous_hash, hash
FROM audit ORDER BY number"""
_ROWS = """
SELECT number, at, actor, action, subject, tenant_id, source, request_id, before::text AS before,
       after::text AS after, previous_hash, hash
FROM audit"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it is stored. `before` and `after` are JSON text, the hashes hexadecimal."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str
    tenant_id: str | None
    source: str
    request_id: str | None
    before: msgspec.Raw | None
    after: msgspec.Raw | None
    previous_hash: str
    hash: str


class Fault(StrEnum):
    """What is wrong with a row."""

    CHANGED = "changed"  # its hash does not fit it: it was changed, or written without this pepper
    MISSING = "missing"  # there is none of this number, and there are later ones
    OUT_OF_ORDER = "out of order"  # it does not follow the row that is before it
    CUT_OFF = "cut off"  # there is none of this number, and no row has the head that was noted


@dataclass(frozen=True, slots=True, kw_only=True)
class Intact:
    """Every row is as it was written. `head` is the last one's hash."""

    count: int
    head: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The number of the first row that is wrong, and what is."""

    number: int
    fault: Fault


async def verify(pool: Pool, *, pepper: bytes, noted: bytes | None = None) -> Intact | Broken:
    """Walk the whole chain. `noted` is a head from earlier, which must still be in it. Raises `DatabaseOutage`."""
    key = chain_key(pepper)
    intact = Intact(count=0, head=GENESIS)
    seen = noted is None or noted == GENESIS
    async with aclosing(_stream(pool, _CHAINED)) as rows:
        async for row in rows:
            fault = _fault(row, intact, key)
            if fault is not None:
                return Broken(number=intact.count + 1, fault=fault)
            intact = Intact(count=row["number"], head=row["hash"])
            seen = seen or intact.head == noted
    return intact if seen else Broken(number=intact.count + 1, fault=Fault.CUT_OFF)


async def export(pool: Pool, *, since: datetime | None = None) -> AsyncGenerator[Row, None]:
    """Give every row, or those from a time on, oldest first. Raises `DatabaseOutage`."""
    query, values = (_ROWS, ()) if since is None else (f"{_ROWS} WHERE at >= $1", (since,))
    async with aclosing(_stream(pool, f"{query} ORDER BY number", *values)) as rows:
        async for row in rows:
            yield _row(row)


async def latest(pool: Pool, *, limit: int, subject: str | None = None) -> list[Row]:
    """Return the newest rows, of all or of one subject, newest first. Raises `DatabaseOutage`."""
    query, values = (_ROWS, ()) if subject is None else (f"{_ROWS} WHERE subject = $2", (subject,))
    with outages_named():
        return [_row(row) for row in await pool.fetch(f"{query} ORDER BY number DESC LIMIT $1", limit, *values)]


def _fault(row: asyncpg.Record, so_far: Intact, key: bytes) -> Fault | None:
    if row["number"] != so_far.count + 1:
        return Fault.MISSING
    if row["previous_hash"] != so_far.head:
        return Fault.OUT_OF_ORDER
    facts = {name: value for name, value in row.items() if name not in {"previous_hash", "hash"}}
    return None if hmac.compare_digest(row["hash"], link(key, so_far.head, facts)) else Fault.CHANGED


async def _stream(pool: Pool, query: str, *values: object) -> AsyncGenerator[asyncpg.Record, None]:
    """Rows by a cursor of the server, some hundred at a time: the trail may be larger than the memory."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            async for row in connection.cursor(query, *values, prefetch=_BATCH):
                yield row


def _row(row: asyncpg.Record) -> Row:
    fields = dict(row)
    for name in ("before", "after"):
        fields[name] = None if fields[name] is None else msgspec.Raw(fields[name].encode())
    return Row(**fields | {name: fields[name].hex() for name in ("previous_hash", "hash")})
