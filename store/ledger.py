"""What did each request use? The append-only ledger: settled facts in, sums out.

Writing is idempotent by request id, so that whoever is not sure whether a batch was written writes it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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
    plan, output_named, reserved_at, settlement)
SELECT
    a.request_id, a.organization_id, a.tenant_id, a.principal_id, a.key_id, a.path, a.model, a.stream, a.metering,
    to_timestamp(a.received_ms / 1000.0), to_timestamp(a.admitted_ms / 1000.0),
    to_timestamp(e.first_event_ms / 1000.0), to_timestamp(e.ended_ms / 1000.0), e.state, e.cause, e.status,
    e.input_tokens, e.output_tokens, e.usage_source, a.input_estimate, a.output_reserved, e.events, e.response_bytes,
    coalesce(e.cached_tokens, 0), coalesce(e.reasoning_tokens, 0), coalesce(c.requests, 0),
    coalesce(c.input_tokens, 0), coalesce(c.output_tokens, 0), coalesce(c.tokens, 0), coalesce(c.cost, 0),
    coalesce(a.degraded, ''), coalesce(a.input_bytes, 0), a.plan,
    coalesce(a.output_named, false), to_timestamp(r.reserved_ms / 1000.0), r.settlement
FROM jsonb_to_recordset($1::jsonb) AS r (admission jsonb, ending jsonb, reserved_ms bigint, settlement bigint),
    jsonb_to_record(r.admission) AS a (
        request_id uuid, organization_id text, tenant_id text, principal_id text, key_id text, path text,
        model text, stream boolean, metering text, received_ms bigint, admitted_ms bigint,
        input_estimate bigint, output_reserved bigint, input_bytes bigint, degraded text, plan text,
        output_named boolean),
    jsonb_to_record(r.ending) AS e (
        state text, cause text, status smallint, input_tokens bigint, output_tokens bigint, usage_source text,
        events bigint, response_bytes bigint, first_event_ms bigint, ended_ms bigint, cached_tokens bigint,
        reasoning_tokens bigint, charges jsonb),
    jsonb_to_record(coalesce(e.charges, '{}')) AS c (
        requests bigint, input_tokens bigint, output_tokens bigint, tokens bigint, cost bigint)
ORDER BY a.request_id
ON CONFLICT (request_id) DO NOTHING"""


# The columns of `quota.charges.Charges`.
_CHARGES = {
    "requests": "charged_requests",
    "input_tokens": "charged_input_tokens",
    "output_tokens": "charged_output_tokens",
    "tokens": "charged_tokens",
    "cost": "cost_micros",
}


class GroupBy(StrEnum):
    """What usage is summed by."""

    DAY = "day"
    MODEL = "model"
    TENANT = "tenant"


# A day is one of UTC: the tenants of a sum may be in several time zones.
_GROUPS = {
    GroupBy.DAY: "to_char(ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    GroupBy.MODEL: "model",
    GroupBy.TENANT: "tenant_id",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTotal:
    """The sums of one group: a day as YYYY-MM-DD, a model, or a tenant's id."""

    group: str
    requests: int
    completed: int
    input_tokens: int
    output_tokens: int
    estimated: int
    """How many of the requests were charged by estimate."""
    cached_tokens: int = 0
    """Of the input tokens, those read from a cache."""
    reasoning_tokens: int = 0
    """Of the output tokens, those never shown."""
    cost_micros: int = 0
    """Micro-dollars. What was written before there were prices is in no sum of these three."""


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
    return None if row is None else _record(row)


async def usage(
    pool: Pool, *, tenant: str | None, since: datetime, until: datetime, group_by: GroupBy
) -> list[UsageTotal]:
    """Sum what ended from `since` up to, not including, `until`, by group; `tenant` is an id, None for all."""
    of_tenant, values = ("", ()) if tenant is None else ("AND tenant_id = $3", (tenant,))
    query = f"""
        SELECT {_GROUPS[group_by]} AS "group", count(*) AS requests,
               count(*) FILTER (WHERE state = 'completed') AS completed,
               sum(input_tokens)::bigint AS input_tokens, sum(output_tokens)::bigint AS output_tokens,
               count(*) FILTER (WHERE usage_source = 'estimated') AS estimated,
               coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
               coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
               coalesce(sum(cost_micros), 0)::bigint AS cost_micros
        FROM inference_requests WHERE ended_at >= $1 AND ended_at < $2 {of_tenant}
        GROUP BY 1 ORDER BY 1"""  # noqa: S608 - made of the constants above
    with outages_named():
        return [UsageTotal(**row) for row in await pool.fetch(query, since, until, *values)]


async def _write(pool: Pool, records: Sequence[UsageRecord]) -> tuple[int, list[UsageRecord]]:
    if not records:
        return 0, []
    text = msgspec.json.encode([_storable(record) for record in records]).decode()
    try:
        with outages_named():
            try:
                tag = await pool.execute(_INSERT, text)
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                raise _Unfit from error
    except _Unfit:
        return await _write_halves(pool, records)
    return int(tag.rpartition(" ")[2]), []


async def _write_halves(pool: Pool, records: Sequence[UsageRecord]) -> tuple[int, list[UsageRecord]]:
    """Find the bad records by halving: a few statements for one bad record among hundreds."""
    if len(records) == 1:
        return 0, list(records)
    middle = len(records) // 2
    first, second = await _write(pool, records[:middle]), await _write(pool, records[middle:])
    return first[0] + second[0], first[1] + second[1]


class _Unfit(Exception):
    """Something in the batch does not fit its column."""


def _storable(record: UsageRecord) -> UsageRecord:
    # The model is the client's text, and JSON can say U+0000, which Postgres' text cannot hold.
    model = record.admission.model
    if "\0" not in model:
        return record
    admission = msgspec.structs.replace(record.admission, model=model.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    return msgspec.structs.replace(record, admission=admission)


def _record(row: asyncpg.Record) -> UsageRecord:
    said = {name: value for name, value in row.items() if value is not None}
    fields = said | {
        "request_id": str(row["request_id"]),
        "received_ms": _ms(row["received_at"]),
        "admitted_ms": _ms(row["admitted_at"]),
        "first_event_ms": _ms(row["first_event_at"]),
        "ended_ms": _ms(row["ended_at"]),
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
