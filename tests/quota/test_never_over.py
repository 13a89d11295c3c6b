"""However many workers and clients ask at once, no ceiling is passed, and in the end counters hold what was settled."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import NOTHING, Charges
from quota.limit import Limit, Unit, Window
from quota.redis import RedisReservations
from quota.reservation import Exceeded, Reservation
from tests.quota.worlds import make_whole, piped, used
from tests.support.values import amounts, claim, held, settlement, sliding, slots, tokens_a_day

WORKERS = 4
CLIENTS = 60
CEILING = 50
ALL = held(
    sliding(100, seconds=3600),
    tokens_a_day(30_000),
    Limit(name="output", unit=Unit.OUTPUT_TOKENS, window=Window.SLIDING, ceiling=20_000, seconds=3600, burst=15_000),
    Limit(name="budget", unit=Unit.COST, window=Window.CALENDAR_MONTH, ceiling=10**12),
    slots(7),
)


@pytest.fixture
async def workers(redis: Redis) -> AsyncIterator[list[RedisReservations]]:
    await make_whole(redis)
    async with contextlib.AsyncExitStack() as stack:
        yield [RedisReservations(await stack.enter_async_context(piped(redis))) for _ in range(WORKERS)]


@pytest.mark.parametrize("limit", [sliding(CEILING, seconds=3600), slots(CEILING), tokens_a_day(CEILING)])
async def test_exactly_the_ceiling_is_admitted(workers: list[RedisReservations], limit: Limit) -> None:
    limits = held(limit)
    answers = await asyncio.gather(*(workers[n % WORKERS].reserve(claim(f"r{n}", limits)) for n in range(200)))
    assert Counter(type(answer) for answer in answers) == {Reservation: CEILING, Exceeded: 200 - CEILING}


@dataclass(slots=True)
class Storm:
    """Clients that ask, run, and end in all ways there are; some of them twice and from another worker."""

    workers: list[RedisReservations]
    random: random.Random
    running: int = 0
    most: int = 0
    settled: list[Charges] = field(default_factory=list)
    beyond: Counter[str] = field(default_factory=Counter)

    async def client(self, number: int) -> None:
        for attempt in range(6):
            name, worker = f"r{number}.{attempt}", self.random.choice(self.workers)
            read, written = self.random.randrange(1, 200), self.random.randrange(1, 400)
            asked = Charges(
                requests=1, input_tokens=read, output_tokens=written, tokens=read + written, cost=read * 10**6
            )
            answers = await asyncio.gather(
                *(each.reserve(claim(name, ALL, asked, least=amounts(read))) for each in (worker, worker))
            )
            assert answers[0] == answers[1] or any(isinstance(answer, Exceeded) for answer in answers)
            taken = next((answer for answer in answers if isinstance(answer, Reservation)), None)
            if taken:
                await self._run(name, asked, taken)

    async def _run(self, name: str, asked: Charges, reservation: Reservation) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        fact = self._fact(asked)
        one, other = self.random.sample(self.workers, 2)
        if self.random.random() < 0.1:
            assert await one.release("org_a", name)
            return
        # Before the call: Redis may have done it long before its answer is here.
        for applied, taken in zip(ALL.limits, reservation.taken, strict=True):
            self.beyond[applied.limit.name] += max(0, fact.of(applied.limit.unit) - taken)
        ended = await asyncio.gather(*(each.settle(settlement(name, fact)) for each in (one, other)))
        assert sorted(ended) == [False, True]
        self.settled.append(fact)

    def _fact(self, asked: Charges) -> Charges:
        if self.random.random() < 0.2:
            return NOTHING
        written = self.random.randrange(0, 2 * asked.output_tokens)
        return Charges(
            requests=1,
            input_tokens=asked.input_tokens,
            output_tokens=written,
            tokens=asked.input_tokens + written,
            cost=asked.cost + written,
        )


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_storm_of_clients_over_several_workers(workers: list[RedisReservations], seed: int) -> None:
    storm = Storm(workers, random.Random(seed))  # noqa: S311 - the same storm again
    watching = asyncio.create_task(_watch(workers[0], storm))
    await asyncio.gather(*(storm.client(number) for number in range(CLIENTS)))
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert 1 <= storm.most <= 7
    assert len(storm.settled) >= 20
    for applied, standing in zip(ALL.limits, await workers[0].standings("org_a", ALL), strict=True):
        slot = applied.limit.unit is Unit.CONCURRENT_REQUESTS
        assert standing.used == (0 if slot else sum(fact.of(applied.limit.unit) for fact in storm.settled))
        assert standing.reserved == 0


async def _watch(worker: RedisReservations, storm: Storm) -> None:
    while True:
        for applied, standing in zip(ALL.limits, await worker.standings("org_a", ALL), strict=True):
            ceiling = applied.limit.ceiling + storm.beyond[applied.limit.name]
            assert 0 <= standing.reserved <= standing.used <= ceiling


async def test_two_organizations_of_one_shard_do_not_share_what_only_one_of_them_has(
    workers: list[RedisReservations],
) -> None:
    limits = (
        AppliedLimits((AppliedLimit(slots(1), "tenant:one"),)),
        AppliedLimits((AppliedLimit(slots(1), "tenant:two"),)),
    )
    answers = await asyncio.gather(*(workers[n].reserve(claim(f"r{n}", limits[n])) for n in range(2)))
    assert [type(answer) for answer in answers] == [Reservation, Reservation]
    assert await used(workers[0], slots(1)) == 0
