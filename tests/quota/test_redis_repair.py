"""Cuts are of one moment, corrections are made by whoever was first, and a late charge is made once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from quota.charges import Charges
from quota.drift import Correction, Period, Slice, slice_at
from quota.limit import Unit
from quota.redis import SHARDS, RedisReservations, key_of, shard_of
from quota.redis_repair import Charge, RedisRepair
from tests.quota.worlds import RedisWorld, all_events, make_whole, over, piped, used
from tests.support.values import ORGANIZATION, amounts, claim, held, settlement, sliding

SHARD = shard_of(ORGANIZATION)
LIMIT = sliding(10**12, seconds=3600, unit=Unit.TOKENS)
LIMITS = held(LIMIT)
COUNTER = LIMITS.limits[0].counter
KEY = key_of(SHARD, "counter", COUNTER)
PERIOD = Period(LIMIT.window, LIMIT.seconds, "")
HOUR_MS = 3_600_000


@pytest.fixture
async def repair(redis: Redis) -> AsyncIterator[RedisRepair]:
    await make_whole(redis)
    async with piped(redis) as pipe:
        yield RedisRepair(pipe)


@pytest.fixture
async def world(redis: Redis) -> AsyncIterator[RedisWorld]:
    async with over(redis) as world:
        yield world


@pytest.fixture
def reservations(world: RedisWorld) -> RedisReservations:
    return world.reservations


async def now_slice(redis: Redis, *, later_ms: int = 0) -> Slice:
    seconds, micros = await redis.time()
    return slice_at(PERIOD, int(seconds) * 1000 + int(micros) // 1000 + later_ms)


async def settle(reservations: RedisReservations, request_id: str, tokens: int) -> None:
    await reservations.reserve(claim(request_id, LIMITS, amounts(100)))
    assert await reservations.settle(settlement(request_id, amounts(tokens)))


async def test_a_cut_tells_what_was_settled_and_not_what_is_reserved(
    repair: RedisRepair, reservations: RedisReservations
) -> None:
    await settle(reservations, "ended", 30)
    await reservations.reserve(claim("runs", LIMITS, amounts(100)))
    cut = await repair.cut(SHARD, [COUNTER, "of nobody"])
    assert [sum(each.settled.values()) for each in cut.held] == [30, 0]
    assert [each.unexplained for each in cut.held] == [0, 0]
    assert cut.whole


async def test_what_is_settled_later_is_after_the_cut(repair: RedisRepair, world: RedisWorld) -> None:
    await settle(world.reservations, "before", 1)
    cut = await repair.cut(SHARD, [])
    await settle(world.reservations, "after", 1)
    before, after = await all_events(world.events)
    assert before.sequence <= cut.sequence < after.sequence


async def test_the_ledger_has_everything_once_no_event_up_to_the_cut_is_left(
    repair: RedisRepair, world: RedisWorld
) -> None:
    await settle(world.reservations, "before", 1)
    cut = await repair.cut(SHARD, [])
    await settle(world.reservations, "after", 1)
    assert not await repair.in_ledger(cut)
    while not (read := await world.events.read(count=10, wait_ms=100)):
        pass
    await world.events.acknowledge(read[:1])
    assert await repair.in_ledger(cut)


async def test_a_correction_leaves_alone_what_is_reserved_and_settled_meanwhile(
    redis: Redis, repair: RedisRepair, reservations: RedisReservations
) -> None:
    await settle(reservations, "ended", 30)
    cut = await repair.cut(SHARD, [COUNTER])
    await reservations.reserve(claim("runs", LIMITS, amounts(100)))
    await settle(reservations, "ended too", 7)
    wanted = [Correction(counter=COUNTER, slice=await now_slice(redis), difference=500)]
    assert await repair.repair(cut, wanted)
    assert await used(reservations, LIMIT) == 30 + 100 + 7 + 500
    assert await reservations.settle(settlement("runs", amounts(9)))
    assert await used(reservations, LIMIT) == 30 + 9 + 7 + 500


async def test_nothing_settled_becomes_less_than_nothing(
    redis: Redis, repair: RedisRepair, reservations: RedisReservations
) -> None:
    await settle(reservations, "ended", 30)
    await reservations.reserve(claim("runs", LIMITS, amounts(100)))
    cut = await repair.cut(SHARD, [COUNTER])
    place = await now_slice(redis)
    assert await repair.repair(cut, [Correction(counter=COUNTER, slice=place, difference=-31)])
    assert await used(reservations, LIMIT) == 100


async def test_of_two_repairs_by_the_same_cut_one_is_made(
    redis: Redis, repair: RedisRepair, reservations: RedisReservations
) -> None:
    cuts = [await repair.cut(SHARD, [COUNTER]) for _ in range(2)]
    wanted = [Correction(counter=COUNTER, slice=await now_slice(redis), difference=5)]
    made = await asyncio.gather(*(repair.repair(cut, wanted) for cut in (*cuts, cuts[0])))
    assert sorted(made) == [False, False, True]
    assert await used(reservations, LIMIT) == 5


async def test_a_cut_from_before_a_flush_repairs_nothing(redis: Redis, repair: RedisRepair) -> None:
    cut = await repair.cut(SHARD, [COUNTER])
    await redis.flushall()
    wanted = [Correction(counter=COUNTER, slice=await now_slice(redis), difference=5)]
    assert not await repair.repair(cut, wanted, whole=True)
    await repair.cut(SHARD, [COUNTER])
    assert not await repair.repair(cut, wanted, whole=True)
    assert not await redis.exists(KEY)
    assert await repair.lost() == list(range(SHARDS))


async def test_more_corrections_than_one_script_makes_are_made_by_several(redis: Redis, repair: RedisRepair) -> None:
    await redis.flushall()
    place = await now_slice(redis)
    cut = await repair.cut(SHARD, [])
    wanted = [Correction(counter=f"c{number}", slice=place, difference=number + 1) for number in range(1200)]
    assert await repair.repair(cut, wanted, whole=True)
    after = await repair.cut(SHARD, [each.counter for each in wanted])
    assert [each.settled for each in after.held] == [{place.number: each.difference} for each in wanted]
    assert after.whole
    assert len(await repair.lost()) == SHARDS - 1


async def test_a_slice_that_has_left_its_window_or_has_not_begun_is_left_alone(
    redis: Redis, repair: RedisRepair
) -> None:
    cut = await repair.cut(SHARD, [COUNTER])
    places = [await now_slice(redis, later_ms=ms) for ms in (-HOUR_MS - 120_000, 120_000)]
    assert await repair.repair(cut, [Correction(counter=COUNTER, slice=each, difference=5) for each in places])
    charges = [Charge(counter=COUNTER, slice=each, amount=5) for each in places]
    assert await repair.charge(ORGANIZATION, "late", charges)
    assert not await redis.exists(KEY)


async def test_what_a_repair_makes_goes_by_itself(redis: Redis, repair: RedisRepair) -> None:
    cut = await repair.cut(SHARD, [COUNTER])
    place = await now_slice(redis)
    assert await repair.repair(cut, [Correction(counter=COUNTER, slice=place, difference=5, level=77)])
    await repair.charge(ORGANIZATION, "late", [Charge(counter=COUNTER, slice=place, amount=1)])
    async for key in redis.scan_iter(match=key_of(SHARD, "*")):
        assert key == key_of(SHARD, "epoch").encode() or 0 < await redis.pttl(key) <= HOUR_MS + 120_000
    assert await redis.hget(KEY, "level") == b"77"


async def test_a_slice_that_is_older_than_the_others_is_dropped_with_its_window(
    redis: Redis, repair: RedisRepair, reservations: RedisReservations
) -> None:
    place = await now_slice(redis)
    old, oldest = place.oldest - 3, place.oldest
    held_before: dict[Any, Any] = {
        str(old): 4,
        f"r{old}": 1,
        str(oldest): 5,
        "sum": 9,
        "reserved": 1,
        "first": old,
        "last": oldest,
    }
    await redis.hset(KEY, mapping=held_before)
    cut = await repair.cut(SHARD, [COUNTER])
    assert await repair.repair(cut, [Correction(counter=COUNTER, slice=place, difference=6)])
    assert await used(reservations, LIMIT) == 11
    assert not await redis.hexists(KEY, str(old))
    assert not await redis.hexists(KEY, f"r{old}")


async def test_a_request_is_charged_afterwards_once(
    redis: Redis, repair: RedisRepair, reservations: RedisReservations
) -> None:
    charges = [Charge(counter=COUNTER, slice=await now_slice(redis), amount=42)]
    made = await asyncio.gather(*(repair.charge(ORGANIZATION, "late", charges) for _ in range(5)))
    assert sorted(made) == [False] * 4 + [True]
    assert await used(reservations, LIMIT) == 42


async def test_a_cut_tells_who_was_charged_since(redis: Redis, repair: RedisRepair) -> None:
    charges = [Charge(counter=COUNTER, slice=await now_slice(redis), amount=1)]
    first = await repair.cut(SHARD, [])
    for number in range(3):
        await repair.charge(ORGANIZATION, f"before {number}", charges)
    cut = await repair.cut(SHARD, [])
    assert await repair.charged_since(cut) == []
    for number in range(3):
        await repair.charge(ORGANIZATION, f"after {number}", charges)
    assert await repair.charged_since(cut) == ["after 0", "after 1", "after 2"]
    assert len(await repair.charged_since(first)) == 6


async def test_large_numbers_stay_exact(redis: Redis, repair: RedisRepair, reservations: RedisReservations) -> None:
    cut, place, much = await repair.cut(SHARD, [COUNTER]), await now_slice(redis), 2**52 + 1
    assert await repair.repair(cut, [Correction(counter=COUNTER, slice=place, difference=much)])
    await repair.charge(ORGANIZATION, "late", [Charge(counter=COUNTER, slice=place, amount=1)])
    assert await used(reservations, LIMIT) == much + 1
    assert Charges(tokens=much).of(Unit.TOKENS) == much
