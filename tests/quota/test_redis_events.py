"""Settled events over Redis: at least once, whatever happens to the reader, and gone once they are safe elsewhere."""

import asyncio
from collections.abc import Iterable

import pytest
from redis.asyncio import Redis

from quota.redis import SHARDS, RedisSettledEvents, shard_of
from quota.reservation import QuotaOutage, SettledEvent
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import all_events, reserving
from tests.support.values import settlement

# One organization for each shard.
ORGANIZATIONS = {shard_of(f"org_{number}"): f"org_{number}" for number in range(200)}


async def _settle(redis: Redis, names: Iterable[str], *, organization: str = "org_a") -> None:
    async with reserving(redis) as reservations:
        await asyncio.gather(
            *(
                reservations.settle(settlement(name, organization_id=organization, admission=name.encode()))
                for name in names
            )
        )


async def _some(events: RedisSettledEvents, *, count: int = 100, rounds: int = 2) -> list[SettledEvent]:
    """What comes first; a reader's first look, at what it had not acknowledged, may find nothing."""
    for _ in range(rounds):
        if found := await events.read(count=count, wait_ms=0):
            return found
    return []


def _names(events: Iterable[SettledEvent]) -> list[str]:
    return sorted(event.admission.decode() for event in events)


async def test_events_of_all_shards_come_to_one_reader(redis: Redis) -> None:
    assert len(ORGANIZATIONS) == SHARDS
    for shard, organization in ORGANIZATIONS.items():
        await _settle(redis, [f"of {shard}"], organization=organization)
    found = await all_events(RedisSettledEvents(redis, consumer="a"))
    assert {event.shard: event.admission.decode() for event in found} == {
        shard: f"of {shard}" for shard in range(SHARDS)
    }


async def test_what_was_read_comes_again_after_a_crash_until_it_is_acknowledged(redis: Redis) -> None:
    await _settle(redis, "abc")
    assert _names(await _some(RedisSettledEvents(redis, consumer="a"))) == ["a", "b", "c"]
    # It died before it could acknowledge: its next life takes the same name.
    again = await _some(RedisSettledEvents(redis, consumer="a"), rounds=1)
    assert _names(again) == ["a", "b", "c"]
    third = RedisSettledEvents(redis, consumer="a")
    await third.acknowledge(again[:2])
    assert _names(await _some(third)) == ["c"]


async def test_what_is_new_follows_what_was_left(redis: Redis) -> None:
    await _settle(redis, "ab")
    await _some(RedisSettledEvents(redis, consumer="a"))
    await _settle(redis, "cd")
    assert _names(await all_events(RedisSettledEvents(redis, consumer="a"))) == ["a", "b", "c", "d"]


async def test_read_again_begins_with_what_was_not_acknowledged(redis: Redis) -> None:
    await _settle(redis, "ab")
    events = RedisSettledEvents(redis, consumer="a")
    assert _names(await _some(events)) == ["a", "b"]
    assert await events.read(count=100, wait_ms=0) == []
    events.read_again()
    assert _names(await events.read(count=100, wait_ms=0)) == ["a", "b"]


async def test_two_readers_share_the_events(redis: Redis) -> None:
    await _settle(redis, "abcdefgh")
    one, other = RedisSettledEvents(redis, consumer="one"), RedisSettledEvents(redis, consumer="other")
    first = await _some(one, count=4)
    rest = await _some(other)
    assert _names([*first, *rest]) == list("abcdefgh")


async def test_a_running_reader_is_not_robbed(redis: Redis) -> None:
    await _settle(redis, "ab")
    assert len(await _some(RedisSettledEvents(redis, consumer="one"))) == 2
    assert await _some(RedisSettledEvents(redis, consumer="other")) == []


async def test_a_reader_that_starts_takes_over_what_another_left_long_ago(redis: Redis) -> None:
    await _settle(redis, "ab")
    assert len(await _some(RedisSettledEvents(redis, consumer="gone"))) == 2
    heir = RedisSettledEvents(redis, consumer="heir", takeover_ms=0)
    assert _names(await all_events(heir)) == ["a", "b"]


async def test_a_reader_that_runs_takes_over_what_another_left_meanwhile(redis: Redis) -> None:
    # A new pod has a new name, and starts before its predecessor's events are old enough to be taken.
    await _settle(redis, "ab")
    assert len(await _some(RedisSettledEvents(redis, consumer="gone"))) == 2
    heir = RedisSettledEvents(redis, consumer="heir", takeover_ms=100)
    found: list[SettledEvent] = await _some(heir)
    assert found == []
    deadline = asyncio.get_running_loop().time() + 3
    while not found and asyncio.get_running_loop().time() < deadline:
        found = await heir.read(count=100, wait_ms=20)
    assert _names(found) == ["a", "b"]


async def test_more_than_a_thousand_events_of_one_shard_are_taken_over(redis: Redis) -> None:
    names = [f"{number:04}" for number in range(1200)]
    await _settle(redis, names)
    left = RedisSettledEvents(redis, consumer="gone")
    assert len(await _some(left, count=2000)) == 1200
    heir = RedisSettledEvents(redis, consumer="heir", takeover_ms=0)
    assert _names(await all_events(heir)) == names


async def test_the_backlog_counts_what_is_not_acknowledged(redis: Redis) -> None:
    await _settle(redis, "abc")
    events = RedisSettledEvents(redis, consumer="a")
    found = await _some(events)
    assert await events.backlog() == 3
    await events.acknowledge(found[:1])
    assert await events.backlog() == 2
    await events.acknowledge(found)
    assert await events.backlog() == 0


async def test_a_flushed_redis_is_an_outage_once_and_then_heals(redis: Redis) -> None:
    events = RedisSettledEvents(redis, consumer="a")
    await events.read(count=1, wait_ms=0)
    await redis.flushdb()
    with pytest.raises(QuotaOutage):
        await events.read(count=1, wait_ms=0)
    await _settle(redis, "a")
    assert _names(await all_events(events)) == ["a"]


async def test_a_dead_redis_is_an_outage_and_nothing_is_lost_when_it_comes_back(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis:
        events = RedisSettledEvents(redis, consumer="a")
        await _settle(redis, "abc")
        found = await _some(events)
        own_redis.stop()
        for ask in (events.read(count=1, wait_ms=0), events.acknowledge(found), events.backlog()):
            with pytest.raises(QuotaOutage):
                await ask
        own_redis.start()
        assert _names(await all_events(events)) == ["a", "b", "c"]
        assert await events.backlog() == 0
