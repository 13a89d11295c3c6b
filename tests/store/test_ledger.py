"""The ledger: every record once, whatever is repeated, and sums that are right."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from extproc.lifecycle import Cause, State
from extproc.record import Degraded, UsageRecord, UsageSource
from quota.charges import Charges
from store import ledger
from store.database import DatabaseOutage, Pool, open_pool
from store.ledger import GroupBy, UnwritableRecords, UsageTotal
from tests.support.records import DAY, NOON, usage_record

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
    ],
    ids=["id", "negative", "too large", "negative cost", "too large a charge", "too far"],
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


async def test_usage_by_day(pool: Pool) -> None:
    await _write_a_week(pool)
    first, second = await _usage(pool, tenant="ten_a", group_by=GroupBy.DAY)
    assert first == UsageTotal(
        group="2026-01-01",
        requests=2,
        completed=2,
        input_tokens=20,
        output_tokens=60,
        estimated=0,
        cached_tokens=3,
        reasoning_tokens=7,
        cost_micros=5_000_001,
    )
    assert second == UsageTotal(
        group="2026-01-02", requests=1, completed=0, input_tokens=10, output_tokens=3, estimated=1, cost_micros=9
    )


async def test_what_was_written_before_there_were_charges_is_read_and_summed(pool: Pool) -> None:
    record = usage_record(cached_tokens=1, charges=Charges(cost=2), input_bytes=3, reserved_ms=NOON, settlement=4)
    await ledger.write(pool, [record])
    await pool.execute("ALTER TABLE inference_requests DISABLE TRIGGER USER")
    columns = ("cached_tokens", "reasoning_tokens", "charged_requests", "charged_input_tokens", "charged_output_tokens",
               "charged_tokens", "cost_micros", "input_bytes", "reserved_at", "settlement")  # fmt: skip
    await pool.execute(f"UPDATE inference_requests SET {' = NULL, '.join(columns)} = NULL")  # noqa: S608 - constants
    found = await ledger.find(pool, record.admission.request_id)
    assert found == usage_record(request_id=record.admission.request_id)
    [total] = await _usage(pool, tenant=None, group_by=GroupBy.MODEL)
    assert (total.requests, total.cached_tokens, total.reasoning_tokens, total.cost_micros) == (1, 0, 0, 0)


async def test_usage_by_model(pool: Pool) -> None:
    await _write_a_week(pool)
    totals = await _usage(pool, tenant=None, group_by=GroupBy.MODEL)
    assert [(total.group, total.requests, total.output_tokens) for total in totals] == [
        ("demo", 2, 33),
        ("large", 1, 30),
        ("other", 1, 5),
    ]


async def test_usage_by_tenant(pool: Pool) -> None:
    await _write_a_week(pool)
    totals = await _usage(pool, tenant=None, group_by=GroupBy.TENANT)
    assert [(total.group, total.requests) for total in totals] == [("ten_a", 3), ("ten_b", 1)]


async def test_the_end_of_the_span_is_not_in_it(pool: Pool) -> None:
    await ledger.write(pool, [usage_record(ended_ms=NOON)])
    noon = datetime.fromtimestamp(NOON / 1000, UTC)
    for since, until, count in (
        (noon, noon + timedelta(milliseconds=1), 1),
        (noon - timedelta(days=1), noon, 0),
    ):
        found = await ledger.usage(pool, tenant=None, since=since, until=until, group_by=GroupBy.DAY)
        assert len(found) == count


async def _write_a_week(pool: Pool) -> None:
    tomorrow = usage_record(
        ended_ms=NOON + DAY,
        state=State.FAILED,
        output_tokens=3,
        usage_source=UsageSource.ESTIMATED,
        charges=Charges(cost=9),
    )
    dear = usage_record(cached_tokens=3, reasoning_tokens=7, charges=Charges(cost=5_000_000))
    large = usage_record(model="large", charges=Charges(cost=1))
    other = usage_record(tenant_id="ten_b", model="other", output_tokens=5)
    too_late = usage_record(ended_ms=NOON + 8 * DAY)
    await ledger.write(pool, [dear, large, tomorrow, other, too_late])


async def _usage(pool: Pool, *, tenant: str | None, group_by: GroupBy) -> list[UsageTotal]:
    until = NEW_YEAR + timedelta(days=7)
    return await ledger.usage(pool, tenant=tenant, since=NEW_YEAR, until=until, group_by=group_by)
