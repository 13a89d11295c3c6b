"""Whatever is asked in whatever order, memory and Redis give the same answers and hold the same room."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from quota.limit import Limit
from quota.memory import MemoryReservations
from quota.redis import RedisReservations, RedisSettledEvents
from quota.reservation import Exceeded, Reservation, Reservations
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import PATIENT_SECONDS, all_events, used
from tests.support.values import Clock, claim, demand, settlement, sliding, slots, tokens_a_day

HOUR_MS = 3_600_000
# Windows so long that no boundary of a slice passes, on either clock, while a test runs.
REQUESTS = sliding(5, seconds=86_400)
TOKENS = tokens_a_day(1000)
SLOTS = slots(3)
LIMITS = (REQUESTS, TOKENS, SLOTS)

T = TypeVar("T")
requests = st.sampled_from([f"r{number}" for number in range(8)])
amounts = st.integers(1, 1200)


class Compared(RuleBasedStateMachine):
    """Does everything to both."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.organization = f"org_{uuid4()}"
        self.memory = MemoryReservations(Clock().now_ms)
        self.client = Redis.from_url(url)
        self.redis = RedisReservations(self.client, deadline=PATIENT_SECONDS)
        self.runner.run(self._flush())

    def teardown(self) -> None:
        try:
            self.runner.run(self._compare_events())
        finally:
            self.runner.run(self.redis.aclose())
            self.runner.run(self.client.aclose())
            self.runner.close()

    @rule(request=requests, tokens=amounts, least=amounts, taken=st.sets(st.sampled_from([0, 1, 2])))
    def reserve(self, request: str, tokens: int, least: int, taken: set[int]) -> None:
        demands = (demand(REQUESTS), demand(TOKENS, tokens, least=min(tokens, least)), demand(SLOTS))
        asked = claim(
            request,
            *(demands[place] for place in sorted(taken)),
            organization=self.organization,
            lease_ms=HOUR_MS,
        )
        self._both(lambda reservations: reservations.reserve(asked), _comparable)

    @rule(request=requests, tokens=st.none() | st.integers(0, 3000), copy=st.none() | st.just(b"copy"))
    def settle(self, request: str, tokens: int | None, copy: bytes | None) -> None:
        fact = settlement(request, tokens, organization_id=self.organization, admission=copy)
        self._both(lambda reservations: reservations.settle(fact))

    @rule(request=requests)
    def settle_only_if_overdue(self, request: str) -> None:
        fact = settlement(request, 1, organization_id=self.organization, only_if_overdue=True)
        self._both(lambda reservations: reservations.settle(fact))

    @rule(request=requests)
    def release(self, request: str) -> None:
        self._both(lambda reservations: reservations.release(self.organization, request))

    @rule(request=requests, events=st.integers(0, 100))
    def renew(self, request: str, events: int) -> None:
        self._both(lambda reservations: reservations.renew(self.organization, request, lease_ms=HOUR_MS, events=events))

    @invariant()
    def the_same_is_open(self) -> None:
        asked = [(self.organization, f"r{number}") for number in range(8)]
        self._both(lambda reservations: reservations.progress(asked))

    @invariant()
    def the_same_is_used_and_never_more_requests_or_slots_than_the_ceiling(self) -> None:
        for limit in LIMITS:
            taken = self.runner.run(_used(self.memory, limit, self.organization))
            assert self.runner.run(_used(self.redis, limit, self.organization)) == taken >= 0
            assert taken <= limit.ceiling or limit is TOKENS

    def _both(
        self, ask: Callable[[Reservations], Any], comparable: Callable[[Any], Any] = lambda answer: answer
    ) -> None:
        one, other = (comparable(self.runner.run(_of(ask, kept))) for kept in (self.memory, self.redis))
        assert one == other

    async def _flush(self) -> None:
        await self.client.flushdb()

    async def _compare_events(self) -> None:
        in_memory = await all_events(self.memory)
        in_redis = await all_events(RedisSettledEvents(self.client, consumer="a"))
        assert [(event.admission, event.ending) for event in in_memory] == [
            (event.admission, event.ending) for event in in_redis
        ]


async def _of(ask: Callable[[Reservations], Any], reservations: Reservations) -> Any:
    return await ask(reservations)


async def _used(reservations: Reservations, limit: Limit, organization: str) -> int:
    return await used(reservations, limit, organization=organization)


def _comparable(answer: Reservation | Exceeded) -> object:
    """The clocks differ, and with them when it was and when there will be room."""
    if isinstance(answer, Reservation):
        return answer.taken
    return answer.limit, answer.used, answer.retry_after_ms is None


def test_memory_and_redis_agree(redis_server: OwnRedis) -> None:
    run_state_machine_as_test(
        lambda: Compared(redis_server.url),  # type: ignore[arg-type]
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None, report_multiple_bugs=False),
    )
