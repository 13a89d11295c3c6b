"""What Redis forgets before the ledger has it is settled again, and what it has kept is not settled twice."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from extproc import admission as admissions
from extproc import settlement as settlements
from extproc.ending import read
from extproc.settlement import Settler
from quota.pipe import RedisPipe
from quota.redis import RedisReservations, key_of, shard_of
from quota.reservation import QuotaOutage
from sidecar.lost_settlements import LostSettlements
from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import piped
from tests.support.values import ORGANIZATION, Clock, admission, observation

SHARD = shard_of(ORGANIZATION)
EPOCH, EVENTS = key_of(SHARD, "epoch"), key_of(SHARD, "events")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@dataclass(slots=True)
class Recording:
    """A settler over a real Redis, and who watches that Redis."""

    redis: Redis
    pipe: RedisPipe
    told: list[int] = field(default_factory=list)
    settler: Settler = field(init=False)
    lost: LostSettlements = field(init=False)

    def __post_init__(self) -> None:
        clock = Clock()
        reservations = RedisReservations(self.pipe)
        self.settler = Settler(reservations, now=clock.now, now_ms=clock.now_ms, observe=lambda *_: None)
        self.lost = LostSettlements(self.pipe, self.settler, observe=self.told.append)

    async def settle(self, count: int) -> list[str]:
        """Settle requests; returns their ids."""
        ones = [admission(request_id=str(uuid4())) for _ in range(count)]
        for one in ones:
            self.settler.settle(one, read(observation(input_tokens=7, output_tokens=30), one))
        await self.settler.finish()
        return [one.request_id for one in ones]

    async def waiting(self) -> list[str]:
        """The ids of the requests that wait for the ledger."""
        entries: list[Any] = await self.redis.xrange(EVENTS) or []
        return sorted(admissions.decode(fields[b"admission"]).request_id for _, fields in entries)


@pytest.fixture
async def recording(redis_server: OwnRedis) -> AsyncIterator[Recording]:
    async with Redis.from_url(redis_server.url) as redis, piped(redis) as pipe:
        await redis.flushdb()
        await redis.set(EPOCH, "one")
        found = Recording(redis, pipe)
        await found.lost.step()
        yield found


async def test_what_a_flush_took_along_waits_for_the_ledger_again(recording: Recording) -> None:
    ids = await recording.settle(3)
    await recording.redis.flushdb()
    await recording.lost.step()
    assert await recording.waiting() == sorted(ids)
    assert recording.told == [3]


async def test_a_flush_is_seen_after_the_counters_are_whole_again_too(recording: Recording) -> None:
    ids = await recording.settle(3)
    await recording.redis.flushdb()
    await recording.redis.set(EPOCH, "two")
    await recording.lost.step()
    assert await recording.waiting() == sorted(ids)


async def test_it_is_done_once(recording: Recording) -> None:
    await recording.settle(3)
    await recording.redis.flushdb()
    for epoch in ("two", "two", "three"):
        await recording.lost.step()
        await recording.redis.set(EPOCH, epoch)
    await recording.lost.step()
    assert len(await recording.waiting()) == 3
    assert recording.told == [3]


async def test_what_was_not_lost_is_left_alone(recording: Recording) -> None:
    await recording.settle(3)
    await recording.redis.xtrim(EVENTS, maxlen=0)  # the ledger has it
    await recording.lost.step()
    await recording.redis.set(EPOCH, "two")
    await recording.lost.step()
    assert await recording.waiting() == []
    assert recording.told == []


async def test_an_outage_is_waited_out(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await recording.settle(3)
    await recording.redis.flushdb()
    with monkeypatch.context() as patched:

        async def out() -> int:
            raise QuotaOutage("out")

        patched.setattr(recording.lost, "_settler", type("Out", (), {"settle_again": staticmethod(out)}))
        with pytest.raises(QuotaOutage):
            await recording.lost.step()
    await recording.lost.step()
    assert await recording.waiting() == sorted(ids)


async def test_what_is_remembered_is_bounded(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlements, "MAX_REMEMBERED", 2)
    bounded = Recording(recording.redis, recording.pipe)
    await bounded.lost.step()
    ids = [*(await bounded.settle(1)), *(await bounded.settle(1)), *(await bounded.settle(1))]
    await bounded.redis.flushdb()
    await bounded.lost.step()
    assert await bounded.waiting() == sorted(ids[1:])
