"""The ledger: every record once, whatever is repeated, and sums that are right."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

import tests.wire.first_import  # noqa: F401 - before the access log's messages
from authz import grant as grants
from extproc import access_log
from extproc import admission as admissions
from extproc.admission import Tariff
from extproc.inference_request import InferenceRequest
from extproc.lifecycle import Cause, State
from extproc.record import Degraded, UsageRecord, UsageSource
from quota.charges import Charges
from quota.estimate import Estimates
from quota.rate_card import RateCard
from store import ledger
from store import usage as sums
from store.database import DatabaseOutage, Pool, open_pool
from store.ledger import UnwritableRecords
from tests.support.records import DAY, NOON, usage_record
from tests.support.values import arrival, grant

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
BIGINT = 2**63 - 1


async def test_no_records_are_no_work() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    assert await ledger.write(pool, []) == 0
    await pool.close()


@pytest.mark.parametrize(
    "record",
    [
        usage_record(),
        usage_record(first_event_ms=None, status=0, state=State.CANCELLED, cause=Cause.CLIENT_DISCONNECT),
        usage_record(input_tokens=BIGINT, output_tokens=BIGINT, response_bytes=BIGINT),
        usage_record(usage_source=UsageSource.ESTIMATED, state=State.TIMED_OUT, cause=Cause.DEADLINE),
        usage_record(
            cached_tokens=4,
            reasoning_tokens=5,
            charges=Charges(requests=1, input_tokens=7, output_tokens=8, tokens=15, cost=BIGINT),
            input_bytes=99,
            degraded=Degraded.LOCAL,
        ),
        usage_record(charges=Charges(tokens=3), degraded=Degraded.OPEN, reserved_ms=NOON + 3, settlement=BIGINT),
        usage_record(settlement=0),
        usage_record(dispatched_ms=NOON + 5, routing_snapshot='{"why": [1, null], "model": "m"}', actual_cost="0.25"),
        usage_record(model='gpt "5" \\u0000 \N{SNOWMAN} \n', stream=False, ended_ms=NOON + 999),
    ],
)
async def test_a_record_is_read_as_it_was_written(pool: Pool, record: UsageRecord) -> None:
    assert await ledger.write(pool, [record]) == 1
    assert await ledger.find(pool, record.admission.request_id) == record


@pytest.mark.parametrize("request_id", ["no-uuid", "", "00000000-0000-0000-0000-000000000000"])
async def test_a_request_that_is_not_there(pool: Pool, request_id: str) -> None:
    assert await ledger.find(pool, request_id) is None


async def test_the_same_batch_twice_is_written_once(pool: Pool) -> None:
    batch = [usage_record() for _ in range(20)]
    assert await ledger.write(pool, batch) == 20
    assert await ledger.write(pool, batch) == 0


async def test_only_what_is_new_in_a_mixed_batch_is_written(pool: Pool) -> None:
    old, new = usage_record(), usage_record()
    await ledger.write(pool, [old])
    assert await ledger.write(pool, [new, old, new]) == 1


async def test_the_first_record_of_a_request_stays(pool: Pool) -> None:
    first = usage_record(input_tokens=1)
    second = usage_record(request_id=first.admission.request_id, input_tokens=2)
    await ledger.write(pool, [first])
    await ledger.write(pool, [second])
    assert await ledger.find(pool, first.admission.request_id) == first


async def test_writers_that_share_records_write_each_once(pool: Pool) -> None:
    batch = [usage_record() for _ in range(200)]
    orders = (batch, batch[::-1], batch[100:] + batch[:100], batch[::-1])
    written = await asyncio.gather(*(ledger.write(pool, order) for order in orders))
    assert sum(written) == 200


@pytest.mark.parametrize(
    "bad",
    [
        usage_record(request_id="no-uuid"),
        usage_record(input_tokens=-1),
        usage_record(output_tokens=2**63),
        usage_record(charges=Charges(cost=-1)),
        usage_record(charges=Charges(tokens=2**63)),
        usage_record(settlement=2**63),
        usage_record(model="".join(map(chr, range(0x4E00, 0x4E00 + 3000)))),
    ],
    ids=["id", "negative", "too large", "negative cost", "too large a charge", "too far", "too long a model"],
)
async def test_a_bad_record_does_not_hold_up_the_others(pool: Pool, bad: UsageRecord) -> None:
    good = [usage_record() for _ in range(30)]
    with pytest.raises(UnwritableRecords) as raised:
        await ledger.write(pool, [*good[:13], bad, *good[13:]])
    assert raised.value.records == (bad,)
    assert raised.value.inserted == 30
    assert await pool.fetchval("SELECT count(*) FROM inference_requests") == 30


async def test_a_model_that_postgres_cannot_hold_is_written_all_the_same(pool: Pool) -> None:
    record = usage_record(model="a\0b")
    assert await ledger.write(pool, [record]) == 1
    found = await ledger.find(pool, record.admission.request_id)
    assert found is not None
    assert found.admission.model == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    "words",
    ["{", '{"a": "\\u0000"}', '"\\ud800"', "1e999999", "[" * 30_000 + "]" * 30_000, "\0", '{"a":1} x', "NaN"],
    ids=["torn", "null character", "half a pair", "too large", "too deep", "raw null", "more", "no JSON"],
)
@pytest.mark.parametrize("field", ["routing_snapshot", "actual_cost"])
async def test_what_the_router_said_is_worth_no_row(pool: Pool, field: str, words: str) -> None:
    bad = usage_record(**{field: words})
    batch = [usage_record(), bad, usage_record(routing_snapshot='{"a": 1}', actual_cost="2")]
    assert await ledger.write(pool, batch) == 3
    assert await ledger.write(pool, batch) == 0
    found = await ledger.find(pool, bad.admission.request_id)
    assert found is not None
    assert json.loads(getattr(found.ending, field)) == words.replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert msgspec.structs.replace(found.ending, **{field: words}) == bad.ending
    assert await ledger.find(pool, batch[2].admission.request_id) == batch[2]


async def test_requests_of_several_months_are_found_by_their_ids_alone(pool: Pool) -> None:
    batch = [usage_record(received_ms=NOON + month * 31 * DAY) for month in range(-30, 30, 7)]
    assert await ledger.write(pool, batch) == len(batch)
    assert await ledger.write(pool, batch[::-1]) == 0
    for record in batch:
        assert await ledger.find(pool, record.admission.request_id) == record


def test_every_way_to_a_requests_record_says_the_same_time_of_receipt() -> None:
    # Its row is in the partition of that time, and is one row only because nobody ever says another.
    arrived = arrival(received_ms=NOON)
    body = InferenceRequest(model="demo", stream=True, max_output_tokens=9, size=8)
    tariff = Tariff(estimates=Estimates(), rates=RateCard())
    admitted = admissions.admit(grant(), arrived, body, tariff, now_ms=NOON + 9)
    never_answered = access_log._unanswered(grants.encode(grant()), msgspec.json.encode(arrived).decode())
    kept = admissions.decode(admissions.encode(admitted))
    assert admitted.received_ms == never_answered.received_ms == kept.received_ms == NOON
    assert admitted.request_id == never_answered.request_id == kept.request_id


@pytest.mark.parametrize(
    "statement",
    ["UPDATE inference_requests SET status = 1", "DELETE FROM inference_requests", "TRUNCATE inference_requests"],
)
async def test_what_is_written_cannot_be_changed(pool: Pool, statement: str) -> None:
    await ledger.write(pool, [usage_record()])
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await pool.execute(statement)


async def test_an_outage_says_so() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    with pytest.raises(DatabaseOutage):
        await ledger.write(pool, [usage_record()])
    await pool.close()


async def test_what_was_written_before_there_were_charges_is_read_and_summed(pool: Pool) -> None:
    record = usage_record(cached_tokens=1, charges=Charges(cost=2), input_bytes=3, reserved_ms=NOON, settlement=4)
    await ledger.write(pool, [record])
    await pool.execute("ALTER TABLE inference_requests DISABLE TRIGGER USER")
    columns = ("cached_tokens", "reasoning_tokens", "charged_requests", "charged_input_tokens", "charged_output_tokens",
               "charged_tokens", "cost_micros", "input_bytes", "reserved_at", "settlement")  # fmt: skip
    await pool.execute(f"UPDATE inference_requests SET {' = NULL, '.join(columns)} = NULL")  # noqa: S608 - constants
    found = await ledger.find(pool, record.admission.request_id)
    assert found == usage_record(request_id=record.admission.request_id)
    [total] = await sums.usage(
        pool, tenant=None, since=NEW_YEAR, until=NEW_YEAR + timedelta(days=1), group_by=sums.GroupBy.MODEL
    )
    assert (total.requests, total.cached_tokens, total.reasoning_tokens, total.cost_micros) == (1, 0, 0, 0)
