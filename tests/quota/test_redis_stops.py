"""Stops over Redis: everybody who follows is told, from then on, through outages, flushes and clocks set back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from quota.pipe import RedisPipe
from quota.redis import key_of
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from quota.reservation import QuotaOutage
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import fill, piped

STREAM = key_of(0, "stops")


class Follower:
    """One worker that follows, over a pipe of its own."""

    def __init__(self, pipe: RedisPipe) -> None:
        self._stops = RedisStops(pipe)
        self._told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def run(self) -> None:
        async for told in self._stops.follow():
            await self._told.put(told)

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(30):
            return await self._told.get()

    @property
    def idle(self) -> bool:
        return self._told.empty()


@contextlib.asynccontextmanager
async def following(redis: Redis, *, beside: int = 0) -> AsyncIterator[Follower]:
    """A follower that waits in Redis already, beside others that do."""
    async with piped(redis, deadline=FOLLOW_DEADLINE_SECONDS) as pipe:
        follower = Follower(pipe)
        running = asyncio.create_task(follower.run())
        try:
            await blocked(redis, clients=beside + 1)
            yield follower
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def blocked(redis: Redis, *, clients: int = 1) -> None:
    """Wait until so many clients wait in Redis."""
    async with asyncio.timeout(30):
        while (await redis.info("clients"))["blocked_clients"] < clients:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.005)


async def test_everybody_who_follows_is_told_from_then_on(redis: Redis) -> None:
    async with piped(redis) as pipe:
        await RedisStops(pipe).ask("before", "client_cancel")
        async with following(redis) as one, following(redis, beside=1) as other:
            await RedisStops(pipe).ask("a", "client_cancel")
            await RedisStops(pipe).ask("b", "admin_cancel")
            for follower in (one, other):
                assert [await follower.next() for _ in range(2)] == [("a", "client_cancel"), ("b", "admin_cancel")]
                assert follower.idle


async def test_what_comes_while_one_is_told_is_not_missed(redis: Redis) -> None:
    asked = [(f"r{number}", "revoked") for number in range(3000)]
    async with piped(redis) as pipe, following(redis) as follower:
        await asyncio.gather(*(RedisStops(pipe).ask(*each) for each in asked))
        assert [await follower.next() for _ in asked] == asked


async def test_a_stop_that_was_asked_for_while_the_connection_was_gone_comes_after_it(redis: Redis) -> None:
    async with piped(redis) as pipe, following(redis) as follower:
        await RedisStops(pipe).ask("a", "client_cancel")
        assert await follower.next() == ("a", "client_cancel")
        await blocked(redis)
        own = await redis.client_id()
        others = [each["id"] for each in await redis.client_list() if int(each["id"]) != own and each["cmd"] == "xread"]
        transaction = redis.pipeline(transaction=True)
        for other in others:
            transaction.client_kill_filter(_id=other)
        transaction.xadd(STREAM, {"request": "meanwhile", "why": "revoked"})
        await transaction.execute()
        assert await follower.next() == ("meanwhile", "revoked")


async def test_a_dead_redis_is_waited_for(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, piped(redis) as pipe, following(redis) as follower:
        await RedisStops(pipe).ask("a", "client_cancel")
        assert await follower.next() == ("a", "client_cancel")
        own_redis.stop()
        with pytest.raises(QuotaOutage):
            await RedisStops(pipe).ask("b", "client_cancel")
        own_redis.start()
        await RedisStops(pipe).ask("c", "client_cancel")
        assert await follower.next() == ("c", "client_cancel")


async def test_after_a_flush_in_the_same_millisecond_what_is_asked_is_told(redis: Redis) -> None:
    async with piped(redis) as pipe, following(redis) as follower:
        await RedisStops(pipe).ask("a", "client_cancel")
        assert await follower.next() == ("a", "client_cancel")
        entries: Any = await redis.xrange(STREAM)
        await redis.flushall()
        await redis.xadd(STREAM, {"request": "b", "why": "revoked"}, id=entries[-1][0])
        assert await follower.next() == ("b", "revoked")
        assert follower.idle


@pytest.mark.parametrize("ids", [("9-1", "9-2"), ("*", "*")], ids=["clock set back", "clock goes on"])
async def test_after_a_flush_what_is_asked_is_told_whatever_its_id(redis: Redis, ids: tuple[str, str]) -> None:
    async with piped(redis) as pipe, following(redis) as follower:
        await RedisStops(pipe).ask("a", "client_cancel")
        assert await follower.next() == ("a", "client_cancel")
        await redis.flushall()
        for entry_id, name in zip(ids, "bc", strict=True):
            await redis.xadd(STREAM, {"request": name, "why": "revoked"}, id=entry_id)
            assert await follower.next() == (name, "revoked")


async def test_an_entry_that_says_nothing_is_passed_over(redis: Redis) -> None:
    async with piped(redis) as pipe, following(redis) as follower:
        await redis.xadd(STREAM, {"of": "another version"})
        await RedisStops(pipe).ask("a", "client_cancel")
        assert await follower.next() == ("a", "client_cancel")


async def test_the_stream_is_bounded(redis: Redis) -> None:
    await fill(redis, STREAM)
    async with piped(redis) as pipe:
        await RedisStops(pipe).ask("a", "revoked")
    assert 10_000 <= await redis.xlen(STREAM) < 10_500
