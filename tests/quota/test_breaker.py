"""After an outage calls fail at once, one probe at a time goes through, and the first success closes the breaker."""

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.breaker import PROBE_SECONDS, Breaker, NotAsked, ShardBreakers
from quota.redis import shard_of
from quota.reservation import Claim, Exceeded, QuotaOutage, Reservation
from tests.support.values import claim, held

ASKED = claim("a", held())
PROBE_MS = int(PROBE_SECONDS * 1000)


@dataclass(slots=True)
class _Store:
    """Answers, or is out; waits while it is held."""

    out: bool = False
    held: asyncio.Event | None = None
    calls: int = 0

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        del claim
        self.calls += 1
        if self.held is not None:
            await self.held.wait()
        if self.out:
            raise QuotaOutage("out")
        return Reservation(at_ms=0, taken=(), standings=())


@dataclass(slots=True)
class _World:
    ms: int = 1_000_000
    store: _Store = field(default_factory=_Store)
    changes: list[bool] = field(default_factory=list)
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(self.store, now=lambda: self.ms / 1000, observe=self.changes.append)

    async def asked(self) -> bool:
        """Ask once; whether the store was."""
        before = self.store.calls
        try:
            await self.breaker.reserve(ASKED)
        except NotAsked:
            assert self.store.calls == before
        except QuotaOutage:
            pass
        return self.store.calls > before

    async def broken(self) -> None:
        self.store.out = True
        with pytest.raises(QuotaOutage):
            await self.breaker.reserve(ASKED)


@pytest.fixture
def world() -> _World:
    return _World()


async def test_while_the_limits_answer_all_are_asked(world: _World) -> None:
    assert [await world.asked() for _ in range(5)] == [True] * 5
    assert not world.breaker.open
    assert world.changes == []


async def test_after_an_outage_calls_fail_at_once_and_say_that_nothing_was_asked(world: _World) -> None:
    await world.broken()
    assert world.breaker.open
    with pytest.raises(NotAsked):
        await world.breaker.reserve(ASKED)
    assert world.store.calls == 1


async def test_one_request_tries_again_each_quarter_of_a_second(world: _World) -> None:
    await world.broken()
    tried = []
    for _ in range(1000):
        world.ms += 1
        if await world.asked():
            tried.append(world.ms - 1_000_000)
    assert tried == [PROBE_MS, 2 * PROBE_MS, 3 * PROBE_MS, 4 * PROBE_MS]
    assert world.changes == [True]


async def test_the_first_success_lets_all_through_again(world: _World) -> None:
    await world.broken()
    world.store.out = False
    world.ms += PROBE_MS
    assert [await world.asked() for _ in range(3)] == [True] * 3
    assert not world.breaker.open
    assert world.changes == [True, False]


async def test_while_one_probe_waits_no_other_goes(world: _World) -> None:
    await world.broken()
    world.store.held = asyncio.Event()
    world.ms += PROBE_MS
    probe = asyncio.create_task(world.asked())
    await asyncio.sleep(0)
    world.ms += 10 * PROBE_MS
    assert not any(await asyncio.gather(*(world.asked() for _ in range(50))))
    world.store.held.set()
    assert await probe
    assert world.store.calls == 2


async def test_a_probe_that_is_cancelled_leaves_the_way_to_the_next(world: _World) -> None:
    await world.broken()
    world.store.held = asyncio.Event()
    world.ms += PROBE_MS
    probe = asyncio.create_task(world.asked())
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert world.breaker.open
    world.store.held, world.store.out = None, False
    world.ms += PROBE_MS
    assert await world.asked()
    assert not world.breaker.open


async def test_many_that_run_into_an_outage_together_open_it_once(world: _World) -> None:
    world.store.out, world.store.held = True, asyncio.Event()
    running = [asyncio.create_task(world.asked()) for _ in range(20)]
    await asyncio.sleep(0)
    world.store.held.set()
    assert all(await asyncio.gather(*running))
    assert world.changes == [True]


async def test_an_answer_that_was_under_way_when_the_outage_began_ends_it(world: _World) -> None:
    world.store.held = waiting = asyncio.Event()
    early = asyncio.create_task(world.asked())
    await asyncio.sleep(0)
    world.store.held = None
    await world.broken()
    world.store.out = False
    waiting.set()
    await early
    assert not world.breaker.open


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=60))
async def test_however_an_outage_goes_it_costs_at_most_one_call_a_quarter_of_a_second(
    steps: list[tuple[int, bool]],
) -> None:
    world = _World()
    failed_at: int | None = None
    for wait_ms, out in steps:
        world.ms += wait_ms
        world.store.out = out
        was_asked = await world.asked()
        assert was_asked == (failed_at is None or world.ms >= failed_at + PROBE_MS)
        if was_asked:
            failed_at = world.ms if out else None
        assert world.breaker.open == (failed_at is not None)
    assert all(before != after for before, after in pairwise(world.changes))


async def test_of_a_cluster_each_shard_breaks_alone_and_a_change_is_told_once() -> None:
    store, changes = _ByShard({shard_of("org_a"), shard_of("org_b")}), list[bool]()
    seconds = 0.0
    breakers = ShardBreakers(store, now=lambda: seconds, observe=changes.append)
    for _ in range(3):
        for organization in ("org_a", "org_b"):
            with pytest.raises(QuotaOutage):
                await breakers.reserve(claim("x", held(), organization_id=organization))
        await breakers.reserve(claim("x", held(), organization_id="org_c"))
    assert (store.calls, changes) == (2 + 3, [True])
    for organization, told in (("org_a", [True]), ("org_b", [True, False])):
        store.out.discard(shard_of(organization))
        seconds += PROBE_SECONDS
        await breakers.reserve(claim("x", held(), organization_id=organization))
        assert changes == told


@dataclass(slots=True)
class _ByShard:
    """Of a store some shards are out."""

    out: set[int]
    calls: int = 0

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        self.calls += 1
        if shard_of(claim.organization_id) in self.out:
            raise QuotaOutage("out")
        return Reservation(at_ms=0, taken=(), standings=())
