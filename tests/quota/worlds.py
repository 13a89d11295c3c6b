"""The two who keep the promise of `quota.reservation`, each with its clock: in memory, and over a real Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis

from quota.limit import Limit
from quota.memory import MemoryReservations
from quota.redis import RedisReservations, RedisSettledEvents
from quota.reservation import Exceeded, Reservations, SettledEvent, SettledEvents
from tests.support.values import Clock, claim, demand

# The machine is busy: what is shown is outcome, not speed.
PATIENT_SECONDS = 10.0


class World(Protocol):
    """An implementation under test."""

    @property
    def reservations(self) -> Reservations: ...

    @property
    def events(self) -> SettledEvents: ...

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
    async with reserving(redis) as reservations:
        yield RedisWorld(redis, reservations, RedisSettledEvents(redis, consumer="reader"))


def reserving(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> contextlib.aclosing[RedisReservations]:
    """Reservations that are closed at the end of the block."""
    return contextlib.aclosing(RedisReservations(redis, deadline=deadline))


async def used(reservations: Reservations, limit: Limit, *, organization: str = "org_a") -> int:
    """What is taken under a limit, as a claim that can never fit is told."""
    never = demand(limit, limit.ceiling + 1)
    answer = await reservations.reserve(claim("never fits", never, organization=organization))
    assert isinstance(answer, Exceeded)
    return answer.used


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
