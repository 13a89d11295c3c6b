"""Settled events over Redis: at least once, whatever happens to the reader, and gone once they are safe elsewhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import pytest
from redis.asyncio import Redis

from quota.pipe import RedisPipe
from quota.redis import SHARDS, key_of
from quota.redis_events import RedisSettledEvents
from quota.reservation import QuotaOutage, SettledEvent
from sidecar.redis_client import server_pipe
from tests.quota.own_redis import OwnRedis

PATIENT_SECONDS = 10.0


@pytest.fixture
async def pipe(redis: Redis, redis_server: OwnRedis) -> AsyncIterator[RedisPipe]:
    assert await redis.dbsize() == 0
    async with contextlib.aclosing(server_pipe(redis_server.url, deadline=PATIENT_SECONDS)) as pipe:
        yield pipe


async def _settle(pipe: RedisPipe, names: Iterable[str], *, shard: int = 7) -> None:
    """Append what settle.lua appends."""
    stream = key_of(shard, "events")
    await asyncio.gather(*(pipe.call("XADD", stream, "*", "admission", name, "ending", "", "at", 5) for name in names))


async def _some(events: RedisSettledEvents, *, count: int = 100) -> list[SettledEvent]:
    return await events.read(count=count, wait_ms=0)


async def _all(events: RedisSettledEvents) -> list[SettledEvent]:
    """Every event there is, acknowledged."""
    found: list[SettledEvent] = []
    while batch := await _some(events):
        await events.acknowledge(batch)
        found += batch
    return found


def _names(events: Iterable[SettledEvent]) -> list[str]:
    return sorted(event.admission.decode() for event in events)


async def test_events_of_all_shards_come_to_one_reader(pipe: RedisPipe) -> None:
    for shard in range(SHARDS):
        await _settle(pipe, [f"of {shard}"], shard=shard)
    found = await _all(RedisSettledEvents(pipe, consumer="a"))
    assert {event.shard: event.admission.decode() for event in found} == {
        shard: f"of {shard}" for shard in range(SHARDS)
    }


async def test_an_event_says_when_its_room_was_taken_if_the_store_knew(pipe: RedisPipe) -> None:
    await _settle(pipe, "a")
    await pipe.call("XADD", key_of(7, "events"), "*", "admission", "b", "ending", "e")
    found = await _all(RedisSettledEvents(pipe, consumer="a"))
    assert [(event.admission, event.ending, event.reserved_ms) for event in found] == [
        (b"a", b"", 5),
        (b"b", b"e", None),
    ]


async def test_a_read_waits_for_the_first_event(pipe: RedisPipe) -> None:
    events = RedisSettledEvents(pipe, consumer="a")
    reading = asyncio.ensure_future(events.read(count=100, wait_ms=5000))
    await pipe.call("PING")
    await _settle(pipe, "a")
    assert _names(await reading) == ["a"]


async def test_what_was_read_comes_again_after_a_crash_until_it_is_acknowledged(pipe: RedisPipe) -> None:
    await _settle(pipe, "abc")
    assert _names(await _some(RedisSettledEvents(pipe, consumer="a"))) == ["a", "b", "c"]
    # It died before it could acknowledge: its next life takes the same name.
    again = await _some(RedisSettledEvents(pipe, consumer="a"))
    assert _names(again) == ["a", "b", "c"]
    third = RedisSettledEvents(pipe, consumer="a")
    await third.acknowledge(again[:2])
    assert _names(await _some(third)) == ["c"]


async def test_what_is_new_follows_what_was_left(pipe: RedisPipe) -> None:
    await _settle(pipe, "ab")
    await _some(RedisSettledEvents(pipe, consumer="a"))
    await _settle(pipe, "cd")
    assert _names(await _all(RedisSettledEvents(pipe, consumer="a"))) == ["a", "b", "c", "d"]


async def test_read_again_begins_with_what_was_not_acknowledged(pipe: RedisPipe) -> None:
    await _settle(pipe, "ab")
    events = RedisSettledEvents(pipe, consumer="a")
    assert _names(await _some(events)) == ["a", "b"]
    assert await events.read(count=100, wait_ms=0) == []
    events.read_again()
    assert _names(await events.read(count=100, wait_ms=0)) == ["a", "b"]


async def test_two_readers_share_the_events(pipe: RedisPipe) -> None:
    await _settle(pipe, "abcdefgh")
    one, other = RedisSettledEvents(pipe, consumer="one"), RedisSettledEvents(pipe, consumer="other")
    first = await _some(one, count=4)
    rest = await _some(other)
    assert _names([*first, *rest]) == list("abcdefgh")


async def test_a_running_reader_is_not_robbed(pipe: RedisPipe) -> None:
    await _settle(pipe, "ab")
    assert len(await _some(RedisSettledEvents(pipe, consumer="one"))) == 2
    assert await _some(RedisSettledEvents(pipe, consumer="other")) == []


async def test_a_reader_that_starts_takes_over_what_another_left_long_ago(pipe: RedisPipe) -> None:
    await _settle(pipe, "ab")
    assert len(await _some(RedisSettledEvents(pipe, consumer="gone"))) == 2
    heir = RedisSettledEvents(pipe, consumer="heir", takeover_ms=0)
    assert _names(await _all(heir)) == ["a", "b"]


async def test_a_reader_that_runs_takes_over_what_another_left_meanwhile(pipe: RedisPipe) -> None:
    # A new pod has a new name, and starts before its predecessor's events are old enough to be taken.
    await _settle(pipe, "ab")
    assert len(await _some(RedisSettledEvents(pipe, consumer="gone"))) == 2
    heir = RedisSettledEvents(pipe, consumer="heir", takeover_ms=100)
    found = await _some(heir)
    assert found == []
    deadline = asyncio.get_running_loop().time() + 3
    while not found and asyncio.get_running_loop().time() < deadline:
        found = await heir.read(count=100, wait_ms=20)
    assert _names(found) == ["a", "b"]


async def test_more_than_a_thousand_events_of_one_shard_are_taken_over(pipe: RedisPipe) -> None:
    names = [f"{number:04}" for number in range(1200)]
    await _settle(pipe, names)
    left = RedisSettledEvents(pipe, consumer="gone")
    assert len(await _some(left, count=2000)) == 1200
    heir = RedisSettledEvents(pipe, consumer="heir", takeover_ms=0)
    assert _names(await _all(heir)) == names


async def test_the_backlog_counts_what_is_not_acknowledged(pipe: RedisPipe) -> None:
    await _settle(pipe, "abc")
    events = RedisSettledEvents(pipe, consumer="a")
    found = await _some(events)
    assert await events.backlog() == 3
    await events.acknowledge(found[:1])
    assert await events.backlog() == 2
    await events.acknowledge(found)
    assert await events.backlog() == 0


async def test_what_an_interrupted_acknowledgement_left_does_not_come_again(pipe: RedisPipe) -> None:
    await _settle(pipe, "ab")
    [first, _] = await _some(RedisSettledEvents(pipe, consumer="a"))
    # It died between the two steps: what is safe elsewhere is deleted, and not acknowledged.
    await pipe.call("XDEL", key_of(7, "events"), first.id)
    events = RedisSettledEvents(pipe, consumer="a")
    assert _names(await _all(events)) == ["b"]
    assert await pipe.call("XPENDING", key_of(7, "events"), RedisSettledEvents.GROUP) == [0, None, None, None]


async def test_a_flushed_redis_is_an_outage_once_and_then_nothing_is_lost(redis: Redis, pipe: RedisPipe) -> None:
    events = RedisSettledEvents(pipe, consumer="a")
    await events.read(count=1, wait_ms=0)
    for name in "ab":
        await redis.flushall()
        await _settle(pipe, name)  # before anybody has made the group again
        with pytest.raises(QuotaOutage):
            await events.read(count=1, wait_ms=0)
        assert _names(await _all(events)) == [name]


async def test_a_reader_that_starts_after_a_flush_loses_nothing(redis: Redis, pipe: RedisPipe) -> None:
    await _some(RedisSettledEvents(pipe, consumer="a"))
    await redis.flushall()
    await _settle(pipe, "ab")
    assert _names(await _all(RedisSettledEvents(pipe, consumer="b"))) == ["a", "b"]


async def test_a_dead_redis_is_an_outage_and_nothing_is_lost_when_it_comes_back(own_redis: OwnRedis) -> None:
    async with contextlib.aclosing(server_pipe(own_redis.url, deadline=PATIENT_SECONDS)) as pipe:
        events = RedisSettledEvents(pipe, consumer="a")
        await _settle(pipe, "abc")
        found = await _some(events)
        own_redis.stop()
        for ask in (events.read(count=1, wait_ms=0), events.acknowledge(found), events.backlog()):
            with pytest.raises(QuotaOutage):
                await ask
        own_redis.start()
        assert _names(await _all(events)) == ["a", "b", "c"]
        assert await events.backlog() == 0


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_of_redis_are_understood(redis: Redis, redis_server: OwnRedis, protocol: int) -> None:
    url = f"{redis_server.url}?protocol={protocol}"
    async with contextlib.aclosing(server_pipe(url, deadline=PATIENT_SECONDS)) as pipe:
        await _settle(pipe, "ab")
        assert _names(await _all(RedisSettledEvents(pipe, consumer="a"))) == ["a", "b"]
        assert await redis.xlen(key_of(7, "events")) == 0
