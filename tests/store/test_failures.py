"""Failures counted in Redis: one number for all clients, a window that is not prolonged, and keys that end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from redis.asyncio import Redis

from authz.failures import Count, CountOutage
from quota.pipe import RedisPipe
from quota.redis import shard_of
from store.failures import RedisFailureCounts
from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import PATIENT_SECONDS

SOURCE = "2001:db8:1:2::/64"
KEY = f"igw1:{{{shard_of(SOURCE):02}}}:failures:{SOURCE}"


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
async def redis(redis_server: OwnRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
        yield client


def _piped(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> aclosing[RedisPipe]:
    return aclosing(RedisPipe(redis.connection_pool.make_connection, deadline=deadline))


async def test_many_clients_at_once_share_one_number(redis: Redis) -> None:
    async with _piped(redis) as one, _piped(redis) as other:
        counts = [RedisFailureCounts(pipe) for pipe in (one, other)]
        answers = await asyncio.gather(*(counts[number % 2].add(SOURCE) for number in range(100)))
        assert sorted(answer.failures for answer in answers) == list(range(1, 101))
        assert all(0 < answer.reset_ms <= 60_000 for answer in answers)
        assert (await counts[0].add("192.0.2.7")).failures == 1


async def test_a_window_begins_with_the_first_failure_and_is_not_prolonged(redis: Redis) -> None:
    async with _piped(redis) as pipe:
        counts = RedisFailureCounts(pipe, window_seconds=3600)
        assert await counts.add(SOURCE) == Count(failures=1, reset_ms=3_600_000)
        await redis.pexpire(KEY, 5000)
        again = await counts.add(SOURCE)
        assert again.failures == 2
        assert again.reset_ms <= 5000


async def test_a_new_window_begins_when_the_old_has_ended(redis: Redis) -> None:
    async with _piped(redis) as pipe:
        counts = RedisFailureCounts(pipe, window_seconds=1)
        await counts.add(SOURCE)
        async with asyncio.timeout(PATIENT_SECONDS):
            while await redis.exists(KEY):  # noqa: ASYNC110 - what is waited for is another process's clock
                await asyncio.sleep(0.01)
        assert await counts.add(SOURCE) == Count(failures=1, reset_ms=1000)


async def test_a_counter_that_would_stay_for_ever_gets_an_end(redis: Redis) -> None:
    await redis.set(KEY, 41)
    async with _piped(redis) as pipe:
        assert await RedisFailureCounts(pipe).add(SOURCE) == Count(failures=42, reset_ms=60_000)
        assert await redis.pttl(KEY) > 0


async def test_without_redis_it_is_an_outage(redis_server: OwnRedis, redis: Redis) -> None:
    async with _piped(redis, deadline=0.05) as pipe:
        with redis_server.frozen(), pytest.raises(CountOutage):
            await RedisFailureCounts(pipe).add(SOURCE)


async def test_what_redis_cannot_do_is_an_outage(redis: Redis) -> None:
    await redis.set(KEY, "no number")
    async with _piped(redis) as pipe:
        with pytest.raises(CountOutage):
            await RedisFailureCounts(pipe).add(SOURCE)
