"""Beside the ledger writer: months are there before they are needed, what is old goes, and its lag is shown."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

import tests.wire.first_import  # noqa: F401 - before the writer, which serves the access log
from extproc.ending import read
from extproc.settlement import settlement
from quota.ledger_backlog import LedgerBacklog, Waiting
from quota.pipe import RedisPipe
from quota.redis import SHARDS, RedisReservations, shard_of
from quota.redis_events import RedisSettledEvents
from quota.redis_repair import RedisRepair
from sidecar import ledger_upkeep, ledger_writer, metrics
from sidecar.late_charges import LateCharges
from sidecar.ledger_upkeep import LedgerUpkeep
from sidecar.ledger_writer import LedgerWriter
from sidecar.logs import Logger
from store import ledger, partitions
from store.database import Pool, opened
from store.partitions import months_later, oldest_kept
from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import piped
from tests.sidecar.embedded.processes import until
from tests.sidecar.reconciling import Lines
from tests.support.records import usage_record
from tests.support.values import admission, observation

TODAY = datetime.now(UTC)
NOWHERE = "postgresql://postgres@/gateway?host=/nowhere"


def upkeep(pool: Pool, lines: Lines, *, months: int | None = None, now: datetime = TODAY) -> LedgerUpkeep:
    return LedgerUpkeep(pool, cast("Logger", lines), retention_months=months, now=lambda: now)


async def months(pool: Pool) -> list[date]:
    return [each.month for each in await partitions.partitions(pool) if each.month is not None]


async def test_the_next_months_are_made_and_said_and_only_once(pool: Pool) -> None:
    lines, later = Lines(), TODAY + timedelta(days=62)
    await upkeep(pool, lines).step()
    assert lines.actions == []
    for _ in range(2):
        await upkeep(pool, lines, now=later).step()
    assert set(lines.actions) == {"ledger_month_made"}
    assert oldest_kept(later, -2) in await months(pool)
    assert len(lines.actions) == len(await months(pool)) - 3


async def test_without_a_retention_nothing_goes(pool: Pool) -> None:
    await partitions.ensure(pool, now=datetime(2001, 1, 1, tzinfo=UTC), ahead=0)
    await upkeep(pool, Lines()).step()
    assert date(2001, 1, 1) in await months(pool)


@pytest.mark.parametrize("kept", [2, 3, 12])
async def test_the_current_month_and_so_many_before_it_stay(pool: Pool, kept: int) -> None:
    oldest = oldest_kept(TODAY, 14)
    await partitions.ensure(pool, now=datetime(oldest.year, oldest.month, 3, tzinfo=UTC), ahead=14)
    moments = [months_later(oldest, distance) for distance in range(15)]
    records = [usage_record(received_ms=_ms(month) + 5) for month in moments]
    await ledger.write(pool, records)
    lines = Lines()
    await upkeep(pool, lines, months=kept).step()
    assert lines.actions == ["ledger_month_dropped"] * (14 - kept)
    found = [await ledger.find(pool, each.admission.request_id) for each in records]
    assert found == [None] * (14 - kept) + records[14 - kept :]
    await upkeep(pool, lines, months=kept).step()
    assert len(lines.actions) == 14 - kept


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


async def test_a_stray_of_an_old_month_goes_too(pool: Pool) -> None:
    stray = usage_record(received_ms=0)
    await ledger.write(pool, [stray])
    lines = Lines()
    await upkeep(pool, lines, months=2).step()
    assert lines.actions == ["ledger_month_made", "ledger_month_dropped"]
    assert await ledger.find(pool, stray.admission.request_id) is None


async def test_an_outage_is_said_once_and_waited_out(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_upkeep, "_RETRY_SECONDS", 0.001)
    ensure, asked = partitions.ensure, 0

    async def failing(of: Pool, **options: Any) -> list[date]:
        nonlocal asked
        asked += 1
        if asked <= 3:
            async with opened(NOWHERE) as nowhere:
                return await ensure(nowhere, **options)
        return await ensure(of, **options)

    monkeypatch.setattr(partitions, "ensure", failing)
    lines = Lines()
    task = asyncio.create_task(upkeep(pool, lines, now=TODAY + timedelta(days=31)).run())
    async with asyncio.timeout(30):
        await until(lambda: "ledger_month_made" in lines.actions)
    task.cancel()
    assert lines.actions[:2] == ["ledger_upkeep_waiting", "ledger_month_made"]
    assert asked == 4


@dataclass(slots=True)
class Behind:
    """A ledger writer that has much to do."""

    pipe: RedisPipe
    pool: Pool

    def writer(self, pool: Pool) -> LedgerWriter:
        events = RedisSettledEvents(self.pipe, consumer="writer")
        return LedgerWriter(events, pool, LateCharges(RedisRepair(self.pipe), pool), cast("Logger", Lines()))

    async def settle(self, count: int) -> None:
        reservations = RedisReservations(self.pipe)
        for start in range(0, count, 500):
            some = [self._settlement(number) for number in range(start, min(count, start + 500))]
            assert all(await asyncio.gather(*(reservations.settle(each) for each in some)))

    def _settlement(self, number: int) -> Any:
        one = admission(request_id=str(uuid4()), organization_id=f"org_{number % 40}")
        return settlement(one, read(observation(input_tokens=7, output_tokens=30), one))

    async def rows(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM inference_requests"))

    async def waiting(self) -> int:
        return sum(each.count for each in await LedgerBacklog(self.pipe).waiting())


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
async def behind(redis_server: OwnRedis, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Behind]:
    for name, value in {"_WAIT_MS": 1, "_GATHER_SECONDS": 0.0, "_RETRY_SECONDS": 0.01, "_EXPORT_SECONDS": 0.01}.items():
        monkeypatch.setattr(ledger_writer, name, value)
    async with Redis.from_url(redis_server.url) as redis, piped(redis) as pipe:
        await redis.flushdb()
        yield Behind(pipe, pool)


async def test_thousands_that_waited_for_postgres_become_rows_in_bounded_batches(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A charge for a counter that is not there says no more than that; it is not what is looked at here.
    monkeypatch.setattr(LateCharges, "charge", _charge_nothing)
    sizes, write = [], ledger.write

    async def noting(pool: Pool, records: Any) -> int:
        sizes.append(len(records))
        return await write(pool, records)

    monkeypatch.setattr(ledger, "write", noting)
    async with opened(NOWHERE) as nowhere:
        away = asyncio.create_task(behind.writer(nowhere).run())
        await behind.settle(4000)
        async with asyncio.timeout(30):
            await until(lambda: len(sizes) > 3)
        assert await behind.waiting() == 4000
        away.cancel()
    back = asyncio.create_task(behind.writer(behind.pool).run())
    await behind.settle(500)
    async with asyncio.timeout(60):
        while await behind.waiting():  # noqa: ASYNC110 - what is waited for is in Redis
            await asyncio.sleep(0.01)
    back.cancel()
    assert await behind.rows() == 4500
    assert max(sizes) <= ledger_writer._BATCH * SHARDS


async def _charge_nothing(*_: object) -> int:
    return 0


async def test_how_far_it_is_behind_is_shown_by_count_and_by_age(behind: Behind) -> None:
    exporting = asyncio.create_task(ledger_writer.export_backlog(LedgerBacklog(behind.pipe)))
    metrics.LEDGER_LAG.set(-1)
    async with asyncio.timeout(30):
        await until(lambda: _shown() == (0, 0.0))
    await behind.settle(3)
    async with asyncio.timeout(30):
        await until(lambda: _shown()[0] == 3 and _shown()[1] > 0)
        first = _shown()[1]
        await until(lambda: _shown()[1] > first)
    exporting.cancel()


def _shown() -> tuple[float, float]:
    return _value(metrics.LEDGER_BACKLOG), _value(metrics.LEDGER_LAG)


def _value(gauge: Any) -> float:
    [metric] = gauge.collect()
    return float(metric.samples[0].value)


async def test_what_waits_is_told_by_shard_with_its_oldest(behind: Behind) -> None:
    idle = await LedgerBacklog(behind.pipe).waiting()
    assert idle == [Waiting(shard=shard, count=0, oldest_ms=None) for shard in range(SHARDS)]
    await behind.settle(1)
    [first] = [each for each in await LedgerBacklog(behind.pipe).waiting() if each.count]
    await behind.settle(1)
    [both] = [each for each in await LedgerBacklog(behind.pipe).waiting() if each.count]
    assert (first.shard, first.count, both.count) == (shard_of("org_0"), 1, 2)
    assert both.oldest_ms == first.oldest_ms
    now_ms = datetime.now(UTC).timestamp() * 1000
    assert first.oldest_ms is not None
    assert abs(now_ms - first.oldest_ms) < 60_000
