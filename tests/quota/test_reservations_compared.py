"""Whatever is asked in whatever order, memory and Redis answer the same, hold the same room, and never too much."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import NOTHING, Charges
from quota.limit import Limit, Mode, Unit, Window
from quota.memory import MemoryReservations
from quota.pipe import RedisPipe
from quota.redis import RedisReservations
from quota.redis_events import RedisSettledEvents
from quota.reservation import Exceeded, Reservation, Reservations
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import PATIENT_SECONDS, all_events, make_whole
from tests.support.values import Clock, claim, progress, settlement

HOUR_MS = 3_600_000


def _limit(unit: Unit, window: Window, ceiling: int, **changes: Any) -> Limit:
    return Limit(name=f"{unit}/{window}", unit=unit, window=window, ceiling=ceiling, **changes)


# Windows so long that no boundary of a period passes, on either clock, while a test runs.
def _limits(run: str) -> tuple[AppliedLimit, ...]:
    tenant, key = f"tenant:{run}", f"principal:{run}"
    shadow = _limit(Unit.TOKENS, Window.CALENDAR_MONTH, 500, mode=Mode.SHADOW)
    return (
        AppliedLimit(_limit(Unit.REQUESTS, Window.SLIDING, 5, seconds=86_400), tenant),
        AppliedLimit(_limit(Unit.REQUESTS, Window.CALENDAR_MONTH, 3, priority=1), key),
        AppliedLimit(_limit(Unit.TOKENS, Window.CALENDAR_DAY, 1000), tenant),
        AppliedLimit(_limit(Unit.INPUT_TOKENS, Window.SLIDING, 800, seconds=86_400), key),
        AppliedLimit(_limit(Unit.OUTPUT_TOKENS, Window.SLIDING, 600, seconds=864_000), f"{tenant},model:m"),
        AppliedLimit(_limit(Unit.COST, Window.CALENDAR_MONTH, 10**15), tenant),
        AppliedLimit(_limit(Unit.CONCURRENT_REQUESTS, Window.LEASE, 3), tenant),
        AppliedLimit(_limit(Unit.CONCURRENT_REQUESTS, Window.LEASE, 2, priority=1), key),
        AppliedLimit(shadow, f"{key},model:m"),
    )


names = st.sampled_from([f"r{number}" for number in range(8)])
few = st.integers(0, 500)
money = st.integers(0, 4 * 10**14)
numbers = st.builds(
    lambda requests, read, written, cost: Charges(
        requests=requests, input_tokens=read, output_tokens=written, tokens=read + written, cost=cost
    ),
    st.integers(0, 1),
    few,
    few,
    money,
)
leases = st.sampled_from([0, HOUR_MS, HOUR_MS])


@dataclass(slots=True)
class _Running:
    limits: tuple[AppliedLimit, ...]
    taken: tuple[int, ...]
    leased: bool


@dataclass(slots=True)
class _Books:
    """What must be so: of each counter what was settled, and what running requests have taken."""

    running: dict[str, _Running] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    beyond: dict[str, int] = field(default_factory=dict)  # what settled requests used beyond their reservations
    ended: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)  # before any reservation of theirs came
    late: set[str] = field(default_factory=set)  # ran on after their lease had run out

    def end(self, name: str, fact: Charges) -> None:
        ended = self.running.pop(name)
        self.late.discard(name)
        for applied, taken in zip(ended.limits, ended.taken, strict=True):
            if applied.limit.window is not Window.LEASE:
                used = fact.of(applied.limit.unit)
                self.settled[applied.counter] = self.settled.get(applied.counter, 0) + used
                self.beyond[applied.counter] = self.beyond.get(applied.counter, 0) + max(0, used - taken)

    def reserved(self, asked: AppliedLimit) -> int:
        slot = asked.limit.window is Window.LEASE
        return sum(
            taken
            for running in self.running.values()
            for applied, taken in zip(running.limits, running.taken, strict=True)
            if applied == asked and (running.leased or not slot)
        )


class Compared(RuleBasedStateMachine):
    """Does everything to both, and keeps the books."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        run = str(uuid4())
        self.organization = f"org_{run}"
        self.limits = _limits(run)
        self.books = _Books()
        self.memory = MemoryReservations(Clock().now_ms)
        self.client = Redis.from_url(url)
        self.pipe = RedisPipe(self.client.connection_pool.make_connection, deadline=PATIENT_SECONDS)
        self.redis = RedisReservations(self.pipe)
        self.runner.run(self._begin())

    def teardown(self) -> None:
        try:
            self.everything_ends_and_the_counters_are_what_was_settled()
            self.runner.run(self._compare_events())
        finally:
            self.runner.run(self.pipe.aclose())
            self.runner.run(self.client.aclose())
            self.runner.close()

    @rule(
        name=names,
        asked=numbers,
        less=st.integers(0, 300),
        chosen=st.sets(st.integers(0, 8), max_size=9),
        lease_ms=leases,
    )
    def reserve(self, name: str, asked: Charges, less: int, chosen: set[int], lease_ms: int) -> None:
        limits = tuple(self.limits[place] for place in sorted(chosen))
        least = Charges(**{unit: max(0, asked.of(Unit(unit)) - less) for unit in Charges.__struct_fields__})
        asked, least = (msgspec.structs.replace(each, requests=1) for each in (asked, least))
        asks = claim(
            name,
            AppliedLimits(limits),
            asked,
            least=least,
            lease_ms=lease_ms,
            organization_id=self.organization,
        )
        comparable = _comparable if lease_ms and name not in self.books.running else _taken
        answer = self._both(lambda reservations: reservations.reserve(asks), comparable)
        if name in self.books.ended | self.books.released:
            assert isinstance(answer, Reservation)
            assert answer.taken == ()
        elif isinstance(answer, Reservation) and name not in self.books.running:
            assert len(answer.taken) == len(limits)
            self.books.running[name] = _Running(limits, answer.taken, leased=lease_ms > 0)

    @rule(name=names, fact=numbers, copy=st.none() | st.just(b"copy"))
    def settle(self, name: str, fact: Charges, copy: bytes | None) -> None:
        ends = settlement(name, fact, organization_id=self.organization, admission=copy)
        done = self._both(lambda reservations: reservations.settle(ends))
        assert done == (name in self.books.running or (copy is not None and name not in self.books.ended))
        if done:
            self.books.ended.add(name)
        if name in self.books.running:
            self.books.end(name, fact)

    @rule(name=names, fact=numbers)
    def sweep(self, name: str, fact: Charges) -> None:
        ends = settlement(name, fact, organization_id=self.organization, only_if_overdue=True)
        done = self._both(lambda reservations: reservations.settle(ends))
        running = self.books.running.get(name)
        assert done == (running is not None and not running.leased)
        if done:
            self.books.ended.add(name)
            self.books.end(name, fact)

    @rule(name=names)
    def release(self, name: str) -> None:
        done = self._both(lambda reservations: reservations.release(self.organization, name))
        assert done == (name in self.books.running)
        if done:
            self.books.end(name, NOTHING)
        else:
            self.books.released.add(name)

    @rule(name=names, events=st.integers(0, 100), lease_ms=leases)
    def renew(self, name: str, events: int, lease_ms: int) -> None:
        done = self._both(
            lambda reservations: reservations.renew(
                self.organization, name, lease_ms=lease_ms, progress=progress(events)
            )
        )
        running = self.books.running.get(name)
        assert done == (None if running is None else "")
        if running:
            if lease_ms and not running.leased:
                self.books.late.add(name)
            running.leased = lease_ms > 0

    @rule()
    @precondition(lambda self: self.books.running)
    def everything_ends_and_the_counters_are_what_was_settled(self) -> None:
        for name in list(self.books.running):
            self.settle(name, NOTHING, None)
        assert self._standings() == [(self.books.settled.get(each.counter, 0), 0) for each in self.limits]

    @rule()
    def the_same_is_open_and_overdue(self) -> None:
        asked = [(self.organization, f"r{number}") for number in range(8)]
        self._both(lambda reservations: reservations.progress(asked))
        late = self._both(lambda reservations: reservations.overdue(limit=100), _ids)
        assert _ids(late) == sorted(name for name, running in self.books.running.items() if not running.leased)

    @invariant()
    def every_counter_is_what_was_settled_and_is_reserved_and_no_more_than_its_ceiling(self) -> None:
        for applied, (used, reserved) in zip(self.limits, self._standings(), strict=True):
            assert reserved == self.books.reserved(applied)
            assert used == self.books.settled.get(applied.counter, 0) + reserved >= reserved >= 0
            # Tokens and money pass a ceiling by what requests used beyond their reservations, at most. Who is reported
            # again after its lease has run out holds its slot again.
            beyond = 0 if applied.limit.unit is Unit.REQUESTS else self.books.beyond.get(applied.counter, 0)
            if applied.limit.unit is Unit.CONCURRENT_REQUESTS:
                beyond = len(self.books.late)
            if applied.limit.enforced:
                assert used <= applied.limit.ceiling + beyond

    def _standings(self) -> list[tuple[int, int]]:
        limits = AppliedLimits(self.limits)
        answer = self._both(lambda reservations: reservations.standings(self.organization, limits), _stand)
        return _stand(answer)

    def _both(
        self, ask: Callable[[Reservations], Any], comparable: Callable[[Any], Any] = lambda answer: answer
    ) -> Any:
        one, other = (self.runner.run(_of(ask, kept)) for kept in (self.memory, self.redis))
        assert comparable(one) == comparable(other)
        return other

    async def _begin(self) -> None:
        await self.client.flushdb()
        await make_whole(self.client)

    async def _compare_events(self) -> None:
        in_memory = await all_events(self.memory)
        in_redis = await all_events(RedisSettledEvents(self.pipe, consumer="a"))
        assert [(event.admission, event.ending, event.reserved_ms is None) for event in in_memory] == [
            (event.admission, event.ending, event.reserved_ms is None) for event in in_redis
        ]


async def _of(ask: Callable[[Reservations], Any], reservations: Reservations) -> Any:
    return await ask(reservations)


def _stand(standings: Any) -> list[tuple[int, int]]:
    return [(standing.used, standing.reserved) for standing in standings]


def _ids(late: Any) -> list[str]:
    return sorted(each.request_id for each in late)


def _comparable(answer: Reservation | Exceeded) -> object:
    """The clocks differ, and with them when it was and when there will be room."""
    if isinstance(answer, Reservation):
        return answer.taken, answer.shadowed, _stand(answer.standings)
    never = answer.retry_after_ms is None
    return answer.limit, answer.used, answer.demanded, never, _stand(answer.standings)


def _taken(answer: Reservation | Exceeded) -> object:
    """A slot whose lease is over at once may be told or not."""
    return answer.taken if isinstance(answer, Reservation) else _comparable(answer)


@pytest.mark.timeout(240)
def test_memory_and_redis_agree_and_keep_the_books(redis_server: OwnRedis) -> None:
    run_state_machine_as_test(
        lambda: Compared(redis_server.url),  # type: ignore[arg-type]
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None, report_multiple_bugs=False),
    )
