"""Settled events become rows, once each, whatever is out and whenever the writer dies."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import pytest
from redis.asyncio import Redis

import tests.wire.first_import  # noqa: F401 - before the writer, which serves the access log
from extproc import admission as admissions
from extproc import ending as endings
from extproc.ending import read
from extproc.record import UsageRecord
from extproc.settlement import settlement
from quota.charges import NOTHING
from quota.pipe import RedisPipe
from quota.redis import RedisReservations, key_of
from quota.redis_events import RedisSettledEvents
from quota.redis_repair import RedisRepair
from quota.reservation import Settlement
from sidecar import ledger_writer
from sidecar.late_charges import LateCharges
from sidecar.ledger_writer import LedgerWriter
from sidecar.logs import Logger
from store import ledger
from store.database import DatabaseOutage, Pool, opened
from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import piped
from tests.sidecar.embedded.processes import until
from tests.sidecar.reconciling import SHARD, Gateway, Lines, charges, expected, gateway, seeded
from tests.support.values import admission, observation, progress


@dataclass(slots=True)
class Writing:
    """A ledger writer over a real Redis and a real Postgres."""

    redis: Redis
    pipe: RedisPipe
    pool: Pool
    lines: Lines = field(default_factory=Lines)

    @property
    def reservations(self) -> RedisReservations:
        return RedisReservations(self.pipe)

    def events(self, consumer: str = "writer") -> RedisSettledEvents:
        return RedisSettledEvents(self.pipe, consumer=consumer)

    def writer(self, *, pool: "Pool | None" = None) -> LedgerWriter:
        """A life of the writer; each takes the same name."""
        of_writer = pool or self.pool
        late = LateCharges(RedisRepair(self.pipe), of_writer)
        return LedgerWriter(self.events(), of_writer, late, cast("Logger", self.lines))

    async def settle(self, count: int) -> list[UsageRecord]:
        """Requests that Redis knew no reservation of; the records that are to become rows."""
        records = [_record() for _ in range(count)]
        for record in records:
            assert await self.reservations.settle(settlement(record.admission, record.ending))
        return records

    async def rows(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM inference_requests"))

    async def work(self, writer: LedgerWriter, *, rows: int) -> None:
        """Let it write until so many rows are there."""
        async with asyncio.timeout(30):
            while await self.rows() < rows:
                await writer.step()


def _record() -> UsageRecord:
    one = admission(request_id=str(uuid4()))
    return UsageRecord(admission=one, ending=read(observation(input_tokens=7, output_tokens=30), one))


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
async def writing(redis_server: OwnRedis, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Writing]:
    # Nothing is waited for: a step finds what is there.
    for name, value in {"_WAIT_MS": 1, "_GATHER_SECONDS": 0.0, "_RETRY_SECONDS": 0.01}.items():
        monkeypatch.setattr(ledger_writer, name, value)
    async with Redis.from_url(redis_server.url) as redis, piped(redis) as pipe:
        await redis.flushdb()
        yield Writing(redis, pipe, pool)


async def test_every_settled_request_becomes_a_row_and_its_event_is_gone(writing: Writing) -> None:
    records = await writing.settle(5)
    await writing.work(writing.writer(), rows=5)
    for record in records:
        found = await ledger.find(writing.pool, record.admission.request_id)
        assert found is not None
        assert (found.admission, found.ending, found.reserved_ms) == (record.admission, record.ending, None)
        assert found.settlement is not None
    assert await writing.events("x").backlog() == 0


async def test_more_events_than_a_batch_are_written_in_several(writing: Writing) -> None:
    await writing.settle(250)
    writer = writing.writer()
    await writing.work(writer, rows=250)
    assert await writer.step() == 0


async def test_killed_between_the_row_and_the_acknowledgement_it_writes_no_row_twice(writing: Writing) -> None:
    records = await writing.settle(3)
    dying = writing.events()
    while not await dying.read(count=100, wait_ms=1):
        pass
    await ledger.write(writing.pool, records)  # committed, and killed before it could acknowledge
    assert await writing.writer().step() == 0
    assert await writing.rows() == 3
    assert await dying.backlog() == 0


async def test_killed_between_reading_and_the_row_it_loses_none(writing: Writing) -> None:
    await writing.settle(3)
    dying = writing.events()
    while not await dying.read(count=100, wait_ms=1):
        pass
    assert await writing.writer().step() == 3


async def test_an_outage_of_postgres_is_waited_out_and_nothing_is_acknowledged(writing: Writing) -> None:
    await writing.settle(3)
    async with opened("postgresql://postgres@/gateway?host=/nowhere") as nowhere:
        writer = writing.writer(pool=nowhere)
        with pytest.raises(DatabaseOutage):
            await writer.step()
    assert await writing.events("x").backlog() == 3
    await writing.work(writing.writer(), rows=3)


async def test_an_outage_is_said_once_and_so_is_its_end(writing: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    await writing.settle(1)
    write, attempts = ledger.write, 0

    async def failing(pool: Pool, records: Any) -> int:
        nonlocal attempts
        attempts += 1
        if attempts <= 3:
            raise DatabaseOutage("out")
        return await write(pool, records)

    monkeypatch.setattr(ledger, "write", failing)
    task = asyncio.create_task(writing.writer().run())
    async with asyncio.timeout(30):
        await until(lambda: "ledger_writing" in writing.lines.actions)
    await _end(task)
    assert writing.lines.actions == ["ledger_waiting", "ledger_writing"]
    assert await writing.rows() == 1


async def _end(task: asyncio.Task[None]) -> int:
    """Cancel until it has ended; how often that took."""
    for times in range(1, 100):
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.5)
        if done:
            return times
    raise AssertionError("it cannot be ended")


async def test_it_ends_when_it_is_cancelled_whatever_it_is_doing(writing: Writing) -> None:
    taken = []
    for turns in range(40):
        task = asyncio.create_task(writing.writer().run())
        for _ in range(300 + turns):  # past its first looks, and then each turn of the loop in turn
            await asyncio.sleep(0)
        taken.append(await _end(task))
    assert set(taken) == {1}


async def test_a_record_the_ledger_cannot_hold_is_logged_and_holds_up_no_other(writing: Writing) -> None:
    good = await writing.settle(2)
    bad = admission(request_id="not a uuid")
    await writing.reservations.settle(settlement(bad, good[0].ending))
    await writing.settle(2)
    await writing.work(writing.writer(), rows=4)
    assert writing.lines.actions == ["ledger_row_unwritable"]
    assert await writing.events("x").backlog() == 0


@pytest.mark.parametrize(
    ("admitted", "ending"),
    [
        (b"{}", None),  # of another release, whose admissions had other fields
        (b"nonsense", None),
        (None, b'{"state":"unheard_of"}'),
        (None, b"\xff"),
    ],
)
async def test_an_event_that_cannot_be_read_is_logged_and_holds_up_no_other(
    writing: Writing, admitted: bytes | None, ending: bytes | None
) -> None:
    record = _record()
    await writing.reservations.settle(
        Settlement(
            organization_id="org_a",
            tenant_id="ten_a",
            request_id="unreadable",
            progress=progress(stage="completed"),
            charges=NOTHING,
            admission=admissions.encode(record.admission) if admitted is None else admitted,
            ending=endings.encode(record.ending) if ending is None else ending,
        )
    )
    await writing.settle(2)
    await writing.work(writing.writer(), rows=2)
    assert writing.lines.actions == ["ledger_event_unreadable"]
    assert await writing.events("x").backlog() == 0


@pytest.fixture
async def counting(redis_server: OwnRedis, pool: Pool, writing: Writing) -> AsyncIterator[Gateway]:
    """The same, with limits."""
    del writing  # for what it sets
    async with gateway(redis_server.url, pool) as found:
        await found.rebuild()
        yield found


async def test_a_row_says_when_room_was_taken_and_in_which_place_it_was_settled(counting: Gateway) -> None:
    one = await counting.reserve()
    charged = charges(seeded(1))
    await counting.settle(one, charged)
    await counting.write_all()
    found = await ledger.find(counting.pool, one.request_id)
    assert found is not None
    assert found.reserved_ms is not None
    assert 0 <= found.reserved_ms - one.admitted_ms < 60_000
    assert found.settlement is not None
    assert found.settlement // 1_000_000 >= found.reserved_ms
    assert found.ending.charges == charged


async def test_a_request_that_no_counter_holds_is_charged_once_however_often_its_event_comes(counting: Gateway) -> None:
    dice = seeded(2)
    done = [(await counting.admission(), charges(dice)) for _ in range(3)]  # admitted without Redis
    for one, charged in done:
        assert await counting.settle(one, charged)
    dying = counting.writer()
    await counting.redis.rename(key_of(SHARD, "events"), key_of(SHARD, "kept"))
    await counting.redis.copy(key_of(SHARD, "kept"), key_of(SHARD, "events"))
    await counting.write_all(dying)
    held = await counting.hold()
    assert held == await expected(counting.pool, done)
    await counting.redis.rename(key_of(SHARD, "kept"), key_of(SHARD, "events"))  # as if never acknowledged
    await counting.write_all(counting.writer())
    assert await counting.hold() == held


async def test_what_was_given_back_charges_nothing(counting: Gateway) -> None:
    assert await counting.settle(await counting.admission(), NOTHING)
    await counting.write_all()
    assert await counting.rows() == 1
    assert await counting.hold() == {}


async def test_it_goes_on_after_a_flush_took_its_consumer_group(counting: Gateway) -> None:
    writer = counting.writer()
    task = asyncio.create_task(writer.run())
    done = []
    async with asyncio.timeout(30):
        for _ in range(3):
            await counting.redis.flushall()
            await counting.rebuild()
            one = await counting.reserve()
            done.append((one, charges(seeded(3))))
            await counting.settle(*done[-1])
            while await counting.rows() < len(done):  # noqa: ASYNC110 - what is waited for is in Postgres
                await asyncio.sleep(0.01)
    await _end(task)
    assert await counting.hold() == await expected(counting.pool, done)
