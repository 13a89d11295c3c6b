"""The logs over Redis: who reads gets all since his place, and no step is taken without being told."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

from extproc.lifecycle import State, predecessors
from quota.redis import SHARDS, RedisReservations, key_of, shard_of
from quota.redis_log import RedisRequestLog
from quota.reservation import Progress, QuotaOutage
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import fill, make_whole, piped, reserving
from tests.support.gateway import until
from tests.support.values import claim, held, settlement, slots

ORGANIZATIONS = {shard_of(f"org_{number}"): f"org_{number}" for number in range(200)}
RECORD, LOG = (key_of(shard_of("org_a"), *parts) for parts in (("request", "a"), ("log",)))
Ask = Callable[[RedisReservations], Coroutine[Any, Any, Any]]


async def test_the_steps_of_all_shards_come_in_one_read_and_once(redis: Redis) -> None:
    async with piped(redis) as pipe, reserving(redis) as reservations:
        log = RedisRequestLog(pipe)
        assert await log.read(await log.positions()) == ([], await log.positions())
        for shard, organization in ORGANIZATIONS.items():
            asks = claim("a", held(), organization_id=organization, event=f"{shard}".encode())
            if shard % 2:
                await reservations.reserve(asks)
        places = await log.positions()
        assert await log.read(places) == ([], places)
        for shard, organization in ORGANIZATIONS.items():
            await reservations.reserve(claim("b", held(), organization_id=organization, event=b"%d" % shard))
        events, after = await log.read(places)
        assert sorted(map(int, events)) == list(range(SHARDS))
        assert after == await log.positions()
        assert await log.read(after) == ([], after)


async def test_a_reader_that_is_far_behind_gets_it_in_parts_in_its_order(redis: Redis) -> None:
    async with piped(redis) as pipe:
        log = RedisRequestLog(pipe)
        places = await log.positions()
        await asyncio.gather(*(pipe.call("XADD", LOG, "*", "event", number) for number in range(2500)))
        found: list[bytes] = []
        while len(found) < 2500:
            events, places = await log.read(places)
            assert 0 < len(events) <= 1000
            found += events
    assert found == [b"%d" % number for number in range(2500)]


async def test_a_dead_redis_is_an_outage(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, piped(redis) as pipe:
        log = RedisRequestLog(pipe)
        places = await log.positions()
        own_redis.stop()
        for ask in (log.positions(), log.read(places)):
            with pytest.raises(QuotaOutage):
                await ask


async def test_a_log_is_bounded(redis: Redis) -> None:
    async with reserving(redis) as reservations:
        for _, ask in STEPS:
            await redis.delete(LOG)
            await fill(redis, LOG)
            await ask(reservations)
            assert 10_000 <= await redis.xlen(LOG) < 10_500


def _step(state: State) -> Progress:
    return Progress(stage=state, after=predecessors(state), event=state.encode())


def _moves(state: State) -> Ask:
    return lambda reservations: reservations.renew("org_a", "a", lease_ms=60_000, progress=_step(state))


STEPS: list[tuple[State, Ask]] = [
    (
        State.ADMITTED,
        lambda reservations: reservations.reserve(claim("a", held(slots(3)), stage=State.ADMITTED, event=b"admitted")),
    ),
    (State.DISPATCHED, _moves(State.DISPATCHED)),
    (State.STREAMING, _moves(State.STREAMING)),
    (
        State.COMPLETED,
        lambda reservations: reservations.settle(settlement("a", progress=_step(State.COMPLETED))),
    ),
]


async def test_a_step_is_told_though_its_caller_dies_before_the_answer(redis: Redis) -> None:
    await make_whole(redis)
    async with piped(redis) as pipe:  # teaches Redis the scripts
        for _, ask in STEPS:
            await ask(RedisReservations(pipe))
    await redis.flushdb()
    await make_whole(redis)
    told: list[bytes] = []
    for state, ask in STEPS:
        await _die_asking(redis, ask)
        told.append(state.encode())

        async def seen(told: list[bytes] = told) -> bool:
            # What stands on the record and what was told, at one moment: never the one without the other.
            transaction = redis.pipeline(transaction=True)
            transaction.hget(RECORD, "stage")
            transaction.xrange(LOG)
            stage, entries = await transaction.execute()
            found = [fields[b"event"] for _, fields in entries]
            assert stage == (found[-1] if found else None)
            return found == told

        assert await until(seen)


async def _die_asking(redis: Redis, ask: Ask) -> None:
    """Ask over a connection that is closed as soon as the question has left, before the answer is read."""
    async with piped(redis) as pipe:
        await pipe.call("PING")
        asking = asyncio.ensure_future(ask(RedisReservations(pipe)))
        for _ in range(10):  # turns of the loop until the pipe has written
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
