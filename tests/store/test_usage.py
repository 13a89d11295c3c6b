"""Sums of the ledger: each request in one group, by every grouping the same total."""

from datetime import UTC, datetime, timedelta

import pytest

from extproc.lifecycle import State
from extproc.record import UsageSource
from quota.charges import Charges
from store import ledger, usage
from store.database import DatabaseOutage, Pool, open_pool
from store.usage import GroupBy, UsageTotal
from tests.support.records import DAY, NOON, usage_record

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


async def write_a_week(pool: Pool) -> None:
    tomorrow = usage_record(
        ended_ms=NOON + DAY,
        state=State.FAILED,
        output_tokens=3,
        usage_source=UsageSource.ESTIMATED,
        charges=Charges(cost=9),
        path="/v1/infer",
    )
    dear = usage_record(cached_tokens=3, reasoning_tokens=7, charges=Charges(cost=5_000_000))
    large = usage_record(model="large", charges=Charges(cost=1), principal_id="wl_w")
    other = usage_record(tenant_id="ten_b", model="other", output_tokens=5)
    too_late = usage_record(ended_ms=NOON + 8 * DAY)
    await ledger.write(pool, [dear, large, tomorrow, other, too_late])


async def summed(pool: Pool, group_by: GroupBy, *, tenant: str | None = None) -> list[UsageTotal]:
    return await usage.usage(pool, tenant=tenant, since=NEW_YEAR, until=NEW_YEAR + WEEK, group_by=group_by)


async def test_usage_by_day(pool: Pool) -> None:
    await write_a_week(pool)
    first, second = await summed(pool, GroupBy.DAY, tenant="ten_a")
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


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        (GroupBy.MODEL, [("demo", 2, 33), ("large", 1, 30), ("other", 1, 5)]),
        (GroupBy.PRINCIPAL, [("key:k", 3, 38), ("wl_w", 1, 30)]),
        (GroupBy.ROUTE, [("/v1/chat/completions", 3, 65), ("/v1/infer", 1, 3)]),
        (GroupBy.TENANT, [("ten_a", 3, 63), ("ten_b", 1, 5)]),
    ],
)
async def test_usage_by_group(pool: Pool, group_by: GroupBy, expected: list[tuple[str, int, int]]) -> None:
    await write_a_week(pool)
    found = await summed(pool, group_by)
    assert [(each.group, each.requests, each.output_tokens) for each in found] == expected


@pytest.mark.parametrize("group_by", GroupBy)
async def test_the_total_is_the_same_by_whatever_it_is_summed(pool: Pool, group_by: GroupBy) -> None:
    await write_a_week(pool)
    assert usage.total(await summed(pool, group_by)) == UsageTotal(
        group="",
        requests=4,
        completed=3,
        input_tokens=40,
        output_tokens=68,
        estimated=1,
        cached_tokens=3,
        reasoning_tokens=7,
        cost_micros=5_000_010,
    )


async def test_nothing_sums_to_nothing(pool: Pool) -> None:
    found = await summed(pool, GroupBy.DAY)
    assert found == []
    assert usage.total(found) == UsageTotal(
        group="", requests=0, completed=0, input_tokens=0, output_tokens=0, estimated=0
    )


async def test_the_end_of_the_span_is_not_in_it(pool: Pool) -> None:
    await ledger.write(pool, [usage_record(ended_ms=NOON)])
    noon = datetime.fromtimestamp(NOON / 1000, UTC)
    for since, until, count in (
        (noon, noon + timedelta(milliseconds=1), 1),
        (noon - timedelta(days=1), noon, 0),
    ):
        found = await usage.usage(pool, tenant=None, since=since, until=until, group_by=GroupBy.DAY)
        assert len(found) == count


async def test_an_outage_says_so() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    with pytest.raises(DatabaseOutage):
        await summed(pool, GroupBy.DAY)
    await pool.close()
