"""What did each request use? The append-only ledger of settled facts; `store.usage` sums it.

Writing is idempotent by request id, so that whoever is not sure whether a batch was written writes it again: a request
has one time of receipt for ever, which is said by its admission, and with it one partition and one row.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from extproc.record import Admission, Ending, UsageRecord
from store.database import Pool, outages_named

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

# One parameter, whatever the size of the batch; what is 0 or empty may be left out of its texts. In the order of the
# ids: two writers that share records would otherwise wait for each other's rows in a circle.
_INSERT = """
INSERT INTO inference_requests (
    request_id, organization_id, tenant_id, principal_id, key_id, path, model, stream, metering,
    received_at, admitted_at, first_event_at, ended_at, state, cause, status, input_tokens, output_tokens,
    usage_source, input_estimate, output_reserved, events, response_bytes, cached_tokens, reasoning_tokens,
    charged_requests, charged_input_tokens, charged_output_tokens, charged_tokens, cost_micros, degraded, input_bytes,
    plan, output_named, reserved_at, settlement, dispatched_at, routing_snapshot, actual_cost)
SELECT
    a.request_id, a.organization_id, a.tenant_id, a.principal_id, a.key_id, a.path, a.model, a.stream, a.metering,
    to_timestamp(a.received_ms / 1000.0), to_timestamp(a.admitted_ms / 1000.0),
    to_timestamp(e.first_event_ms / 1000.0), to_timestamp(e.ended_ms / 1000.0), e.state, e.cause, e.status,
    e.input_tokens, e.output_tokens, e.usage_source, a.input_estimate, a.output_reserved, e.events, e.response_bytes,
    coalesce(e.cached_tokens, 0), coalesce(e.reasoning_tokens, 0), coalesce(c.requests, 0),
    coalesce(c.input_tokens, 0), coalesce(c.output_tokens, 0), coalesce(c.tokens, 0), coalesce(c.cost, 0),
    coalesce(a.degraded, ''), coalesce(a.input_bytes, 0), a.plan,
    coalesce(a.output_named, false), to_timestamp(r.reserved_ms / 1000.0), r.settlement,
    to_timestamp(e.dispatched_ms / 1000.0), nullif(e.routing_snapshot, '')::jsonb, nullif(e.actual_cost, '')::jsonb
FROM jsonb_to_recordset($1::jsonb) AS r (admission jsonb, ending jsonb, reserved_ms bigint, settlement bigint),
    jsonb_to_record(r.admission) AS a (
        request_id uuid, organization_id text, tenant_id text, principal_id text, key_id text, path text,
        model text, stream boolean, metering text, received_ms bigint, admitted_ms bigint,
        input_estimate bigint, output_reserved bigint, input_bytes bigint, degraded text, plan text,
        output_named boolean),
    jsonb_to_record(r.ending) AS e (
        state text, cause text, status smallint, input_tokens bigint, output_tokens bigint, usage_source text,
        events bigint, response_bytes bigint, first_event_ms bigint, ended_ms bigint, cached_tokens bigint,
        reasoning_tokens bigint, charges jsonb, dispatched_ms bigint, routing_snapshot text, actual_cost text),
    jsonb_to_record(coalesce(e.charges, '{}')) AS c (
        requests bigint, input_tokens bigint, output_tokens bigint, tokens bigint, cost bigint)
ORDER BY a.request_id
ON CONFLICT (request_id, received_at) DO NOTHING"""


# What the Router said, as it said it.
_WORDS = ("routing_snapshot", "actual_cost")
# A record is to blame for these: the others of its batch can be written. The last is of JSON that is nested too deep,
# or a text that is too long for an index.
_UNFIT = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)

# The columns of `quota.charges.Charges`.
_CHARGES = {
    "requests": "charged_requests",
    "input_tokens": "charged_input_tokens",
    "output_tokens": "charged_output_tokens",
    "tokens": "charged_tokens",
    "cost": "cost_micros",
}


class UnwritableRecords(Exception):
    """Some records can never be written; `inserted` others of the batch were."""

    def __init__(self, records: Sequence[UsageRecord], *, inserted: int) -> None:
        ids = ", ".join(record.admission.request_id for record in records)
        super().__init__(f"{len(records)} usage records do not fit the ledger: {ids}")
        self.records = tuple(records)
        self.inserted = inserted


async def write(pool: Pool, records: Sequence[UsageRecord]) -> int:
    """Write the records that are not there yet; returns how many were new.

    Raises `DatabaseOutage`, after which the whole batch may be written again, or `UnwritableRecords` when the rest
    is written: one bad record must not hold up the others for ever.
    """
    inserted, unwritable = await _write(pool, records)
    if unwritable:
        raise UnwritableRecords(unwritable, inserted=inserted)
    return inserted


async def find(pool: Pool, request_id: str) -> UsageRecord | None:
    """Return the record of this request; None when there is none, or the id is not one.

    The rates it was charged by are not kept; what a row of before does not say is 0 in it.
    """
    try:
        uuid = UUID(request_id)
    except ValueError:
        return None
    with outages_named():
        row = await pool.fetchrow("SELECT * FROM inference_requests WHERE request_id = $1", uuid)
    return None if row is None else record_of(row)


async def _write(pool: Pool, records: Sequence[UsageRecord]) -> tuple[int, list[UsageRecord]]:
    if not records:
        return 0, []
    try:
        return await _insert(pool, records), []
    except _Unfit:
        return await _write_halves(pool, records)


async def _write_halves(pool: Pool, records: Sequence[UsageRecord]) -> tuple[int, list[UsageRecord]]:
    """Find the bad records by halving: a few statements for one bad record among hundreds."""
    if len(records) == 1:
        try:
            return await _insert(pool, [_with_words_quoted(records[0])]), []
        except _Unfit:
            return 0, list(records)
    middle = len(records) // 2
    first, second = await _write(pool, records[:middle]), await _write(pool, records[middle:])
    return first[0] + second[0], first[1] + second[1]


async def _insert(pool: Pool, records: Sequence[UsageRecord]) -> int:
    text = msgspec.json.encode([_storable(record) for record in records]).decode()
    with outages_named():
        try:
            tag = await pool.execute(_INSERT, text)
        except _UNFIT as error:
            raise _Unfit from error
    return int(tag.rpartition(" ")[2])


class _Unfit(Exception):
    """Something in the batch does not fit its column."""


def _storable(record: UsageRecord) -> UsageRecord:
    # The model is the client's text, and JSON can say U+0000, which Postgres' text cannot hold; so with the Router's.
    model = record.admission.model
    if "\0" in model:
        record = msgspec.structs.replace(
            record, admission=msgspec.structs.replace(record.admission, model=_without_null(model))
        )
    words = {name: _without_null(text) for name in _WORDS if "\0" in (text := getattr(record.ending, name))}
    return _with_ending(record, words) if words else record


def _without_null(text: str) -> str:
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _with_words_quoted(record: UsageRecord) -> UsageRecord:
    """The record, with what the Router said as JSON strings: what it said is worth less than the row.

    Not all that is JSON is jsonb: an escaped U+0000 is not, nor half of a surrogate pair, nor what is nested too deep.
    """
    said = {name: text for name in _WORDS if (text := getattr(record.ending, name))}
    return _with_ending(record, {name: json.dumps(_without_null(text)) for name, text in said.items()})


def _with_ending(record: UsageRecord, changes: Mapping[str, str]) -> UsageRecord:
    return msgspec.structs.replace(record, ending=msgspec.structs.replace(record.ending, **changes))


def record_of(row: asyncpg.Record) -> UsageRecord:
    """The record that a row holds, read with all its columns."""
    said = {name: value for name, value in row.items() if value is not None}
    fields = said | {
        "request_id": str(row["request_id"]),
        "received_ms": _ms(row["received_at"]),
        "admitted_ms": _ms(row["admitted_at"]),
        "first_event_ms": _ms(row["first_event_at"]),
        "ended_ms": _ms(row["ended_at"]),
        "dispatched_ms": _ms(row["dispatched_at"]),
        "charges": {name: said.get(column, 0) for name, column in _CHARGES.items()},
    }
    return UsageRecord(
        admission=msgspec.convert(fields, Admission),
        ending=msgspec.convert(fields, Ending),
        reserved_ms=_ms(row["reserved_at"]),
        settlement=row["settlement"],
    )


def _ms(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MILLISECOND
