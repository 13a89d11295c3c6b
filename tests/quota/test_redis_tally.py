"""What was settled on a day, as Redis counts it: with the events for the ledger, and like them once."""

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from redis.asyncio import Redis

from extproc.lifecycle import State
from quota.charges import NOTHING, Charges
from quota.redis import key_of, shard_of
from quota.redis_tally import RedisTally, Tally
from quota.reservation import QuotaOutage, SettledEvent
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import RedisWorld, all_events, over, piped, reserved
from tests.support.values import amounts, held, progress, settlement

SHARD = shard_of("org_a")
LIMITS = held()
MOST = 2**53 - 2


def _day(event: SettledEvent) -> date:
    return datetime.fromtimestamp(event.sequence // 1_000_000 / 1000, UTC).date()


async def _tallies(redis: Redis, events: list[SettledEvent]) -> list[Tally | None]:
    """Of the days of these events: one, or two when midnight passes."""
    async with piped(redis) as pipe:
        return [await RedisTally(pipe).of(SHARD, day) for day in sorted({_day(event) for event in events})]


async def _settle(world: RedisWorld, name: str, charged: Charges, *, known: bool = True) -> None:
    if known:
        await reserved(world, name, LIMITS)
    ends = settlement(name, charged, admission=b"copy")
    assert sum(await asyncio.gather(*(world.reservations.settle(ends) for _ in range(3)))) == 1


async def test_every_event_for_the_ledger_is_counted_once_whether_room_was_taken_or_not(redis: Redis) -> None:
    async with over(redis) as world:
        for number in range(6):
            await _settle(world, f"r{number}", amounts(10 + number, cost=5), known=number % 2 == 0)
        await _settle(world, "nothing", NOTHING)
        events = await all_events(world.events)
        found = [tally for tally in await _tallies(redis, events) if tally]
    assert len(events) == sum(tally.rows for tally in found) == 7
    assert sum(tally.requests for tally in found) == 6
    assert sum(tally.tokens for tally in found) == sum(range(10, 16))
    assert sum(tally.cost for tally in found) == 30


async def test_what_leaves_no_event_is_not_counted(redis: Redis) -> None:
    async with over(redis) as world:
        await reserved(world, "released", LIMITS)
        assert await world.reservations.release("org_a", "released")
        await reserved(world, "streaming", LIMITS, stage=State.STREAMING)
        assert not await world.reservations.settle(settlement("streaming", progress=progress(stage="dispatched")))
        assert not await world.reservations.settle(settlement("unknown"))
        assert not await world.reservations.settle(settlement("streaming", only_if_overdue=True))
    assert await redis.keys("*:tally:*") == []


async def test_great_sums_are_exact(redis: Redis) -> None:
    async with over(redis) as world:
        await _settle(world, "a", Charges(tokens=MOST - 1, cost=MOST))
        await _settle(world, "b", Charges(tokens=1))
        found = await _tallies(redis, await all_events(world.events))
    assert found == [Tally(rows=2, requests=0, tokens=MOST, cost=MOST)]


async def test_the_day_is_that_of_the_event_though_the_clock_was_set_back(redis: Redis) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    # A later event is in the stream: the next id is just above it, whatever the clock says.
    await redis.xadd(key_of(SHARD, "events"), {"admission": "x", "ending": ""}, id=int(tomorrow.timestamp() * 1000))
    async with over(redis) as world, piped(redis) as pipe:
        await _settle(world, "a", amounts(3))
        assert await RedisTally(pipe).of(SHARD, tomorrow.date()) == Tally(rows=1, requests=1, tokens=3, cost=0)
        assert len(await redis.keys("*:tally:*")) == 1


async def test_a_tally_is_kept_for_forty_days(redis: Redis) -> None:
    async with over(redis) as world:
        await _settle(world, "a", amounts(3))
        [key] = await redis.keys("*:tally:*")
        assert 39 * 86_400 < await redis.ttl(key) <= 40 * 86_400


async def test_of_a_day_without_any_nothing_is_known(redis: Redis) -> None:
    async with piped(redis) as pipe:
        assert await RedisTally(pipe).of(SHARD, date(2026, 1, 1)) is None


async def test_a_dead_redis_is_an_outage(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, piped(redis) as pipe:
        own_redis.stop()
        with pytest.raises(QuotaOutage):
            await RedisTally(pipe).of(SHARD, date(2026, 1, 1))
