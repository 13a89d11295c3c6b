"""The two who keep the promise of `quota.reservation`, each with its clock: in memory, and over a real Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from quota.applied import AppliedLimits
from quota.charges import Charges
from quota.limit import Limit
from quota.memory import MemoryReservations
from quota.pipe import RedisPipe
from quota.redis import SHARDS, RedisReservations, key_of, shard_of
from quota.redis_events import RedisSettledEvents
from quota.reservation import Exceeded, Reservation, Reservations, SettledEvent, SettledEvents
from tests.support.values import ORGANIZATION, Clock, claim, held

# The machine is busy: what is shown is outcome, not speed.
PATIENT_SECONDS = 10.0


class World(Protocol):
    """An implementation under test."""

    @property
    def reservations(self) -> Reservations: ...

    @property
    def events(self) -> SettledEvents: ...

    async def log(self) -> list[bytes]: ...

    async def now_ms(self) -> int: ...

    async def pass_time(self, ms: int) -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryWorld:
    clock: Clock
    memory: MemoryReservations

    @property
    def reservations(self) -> Reservations:
        return self.memory

    @property
    def events(self) -> SettledEvents:
        return self.memory

    async def log(self) -> list[bytes]:
        return list(self.memory.log)

    async def now_ms(self) -> int:
        return self.clock.ms

    async def pass_time(self, ms: int) -> None:
        self.clock.ms += ms


@dataclass(frozen=True, slots=True)
class RedisWorld:
    """Its clock is Redis's own, which nobody can turn: time is waited for."""

    redis: Redis
    reservations: RedisReservations
    events: RedisSettledEvents

    async def log(self) -> list[bytes]:
        entries: Any = await self.redis.xrange(key_of(shard_of(ORGANIZATION), "log"))
        return [fields[b"event"] for _, fields in entries]

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def pass_time(self, ms: int) -> None:
        until = await self.now_ms() + ms
        while await self.now_ms() < until:  # noqa: ASYNC110 - what is waited for is another process's clock
            await asyncio.sleep(0.002)


def in_memory() -> MemoryWorld:
    clock = Clock()
    return MemoryWorld(clock, MemoryReservations(clock.now_ms))


@contextlib.asynccontextmanager
async def over(redis: Redis) -> AsyncIterator[RedisWorld]:
    await make_whole(redis)
    async with piped(redis) as pipe:
        yield RedisWorld(redis, RedisReservations(pipe), RedisSettledEvents(pipe, consumer="reader"))


@contextlib.asynccontextmanager
async def piped(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> AsyncIterator[RedisPipe]:
    """A pipe of its own to this Redis, closed at the end of the block."""
    pipe = RedisPipe(redis.connection_pool.make_connection, deadline=deadline)
    async with contextlib.aclosing(pipe):
        yield pipe


@contextlib.asynccontextmanager
async def reserving(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> AsyncIterator[RedisReservations]:
    """Reservations with a pipe of their own, over counters that are whole if Redis is there at all."""
    with contextlib.suppress(RedisError, OSError):
        await make_whole(redis)
    async with piped(redis, deadline=deadline) as pipe:
        yield RedisReservations(pipe)


async def make_whole(redis: Redis) -> None:
    """Say that the counters of all shards are whole, as nothing has been counted yet."""
    await redis.mset({key_of(shard, "epoch"): "1" for shard in range(SHARDS)})


async def fill(redis: Redis, stream: str) -> None:
    """Put more into a stream than it is to hold."""
    script = "for _ = 1, 10500 do redis.call('XADD', KEYS[1], '*', 'event', '') end"
    await redis.eval(script, 1, stream)


async def used(reservations: Reservations, limit: Limit, *, organization: str = ORGANIZATION) -> int:
    """What is taken under a limit."""
    [standing] = await reservations.standings(organization, held(limit))
    return standing.used


async def reserved(
    world: World, request_id: str, limits: AppliedLimits, asked: Charges | None = None, **changes: Any
) -> Reservation:
    """A request that has to be admitted."""
    answer = await world.reservations.reserve(claim(request_id, limits, asked, **changes))
    assert isinstance(answer, Reservation), answer
    return answer


async def refused(
    world: World, request_id: str, limits: AppliedLimits, asked: Charges | None = None, **changes: Any
) -> Exceeded:
    """A request that has to be refused."""
    answer = await world.reservations.reserve(claim(request_id, limits, asked, **changes))
    assert isinstance(answer, Exceeded), answer
    return answer


async def uses(world: World, *limits: Limit) -> list[int]:
    """What is taken under each limit."""
    return [await used(world.reservations, limit) for limit in limits]


async def all_events(events: SettledEvents) -> list[SettledEvent]:
    """Every event there is, acknowledged."""
    found: list[SettledEvent] = []
    # The first answer may be empty: then what was read before is through, and the new comes.
    empty = 0
    while empty < 2:
        batch = await events.read(count=100, wait_ms=0)
        await events.acknowledge(batch)
        found += batch
        empty = 0 if batch else empty + 1
    return found
