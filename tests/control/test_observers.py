"""Is everybody who watches told what a log is told, by one reader, which goes on after an outage?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis import Redis as SyncRedis

from control.observers import MOST_OF_A_TENANT, Observers
from control.places import NoPlace
from extproc import lifecycle_events
from quota.redis import SHARDS, key_of
from quota.redis_log import RedisRequestLog
from tests.control.conftest import pipe_to
from tests.quota.own_redis import OwnRedis
from tests.support.records import usage_record

_PATIENT = 30.0
TENANT = "ten_a"


def _tell(server: OwnRedis, request_id: str, shard: int = 0) -> None:
    """As a script does."""
    event = lifecycle_events.admitted(usage_record(request_id=request_id).admission)
    with contextlib.closing(SyncRedis.from_url(server.url)) as redis:
        redis.xadd(key_of(shard, "log"), {"event": lifecycle_events.encode(event)})


@asynccontextmanager
async def _observing(server: OwnRedis, *, deadline: float = _PATIENT) -> AsyncIterator[Observers]:
    async with pipe_to(server, deadline=deadline) as pipe:
        observers = Observers(RedisRequestLog(pipe))
        reading = asyncio.create_task(observers.run())
        try:
            yield observers
        finally:
            reading.cancel()
            await asyncio.wait([reading])


async def test_each_is_told_of_its_request_and_no_other(redis_server: OwnRedis) -> None:
    async with (
        _observing(redis_server) as observers,
        observers.watching("one", TENANT) as first,
        observers.watching("one", TENANT) as second,
        observers.watching("two", TENANT) as other,
    ):
        for shard in range(SHARDS):
            _tell(redis_server, "nobody's", shard)
        _tell(redis_server, "one", SHARDS - 1)
        for watch in (first, second):
            event = await watch.next(seconds=_PATIENT)
            assert event is not None
            assert (event.subject, event.data.state) == ("one", "admitted")
        assert await other.next(seconds=0.0) is None


async def test_what_was_told_before_anybody_watched_is_not_told_again(redis_server: OwnRedis) -> None:
    async with _observing(redis_server) as observers:
        _tell(redis_server, "early")
        async with observers.watching("early", TENANT) as watch, observers.watching("mark", TENANT) as mark:
            _tell(redis_server, "mark")
            assert await mark.next(seconds=_PATIENT) is not None
            assert await watch.next(seconds=0.0) is None


async def test_what_no_reader_understands_is_passed_over(redis_server: OwnRedis) -> None:
    async with _observing(redis_server) as observers, observers.watching("one", TENANT) as watch:
        with contextlib.closing(SyncRedis.from_url(redis_server.url)) as redis:
            redis.xadd(key_of(0, "log"), {"event": b"{"})
            redis.xadd(key_of(0, "log"), {"event": b'{"subject": "one"}'})
            redis.xadd(key_of(0, "log"), {"other": b"{}"})
        _tell(redis_server, "one")
        assert await watch.next(seconds=_PATIENT) is not None


async def test_a_tenant_may_watch_so_many_and_leaves_room_for_others(redis_server: OwnRedis) -> None:
    async with _observing(redis_server) as observers, contextlib.AsyncExitStack() as held:
        for _ in range(MOST_OF_A_TENANT):
            await held.enter_async_context(observers.watching("one", TENANT))
        with pytest.raises(NoPlace):
            await held.enter_async_context(observers.watching("one", TENANT))
        await held.enter_async_context(observers.watching("one", "ten_b"))
        await held.aclose()
        async with observers.watching("one", TENANT) as watch:
            _tell(redis_server, "one")
            assert await watch.next(seconds=_PATIENT) is not None


async def test_while_redis_is_away_nothing_is_told_and_then_it_goes_on(redis_server: OwnRedis) -> None:
    async with _observing(redis_server, deadline=0.2) as observers:
        with redis_server.frozen():
            async with observers.watching("one", TENANT) as watch:
                assert await watch.next(seconds=0.0) is None
        async with observers.watching("one", TENANT) as watch:
            for _ in range(100):
                _tell(redis_server, "one")
                if await watch.next(seconds=_PATIENT / 100):
                    return
    pytest.fail("nothing was told after the outage")
