"""Whatever steps are asked for in whatever order, both stores follow the table of the lifecycle and tell each once."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from extproc.lifecycle import CAUSES, FINAL, STOPPING, Impossible, State, Step, follow, predecessors
from quota.memory import MemoryReservations
from quota.pipe import RedisPipe
from quota.redis import RedisReservations, key_of, shard_of
from quota.reservation import Known, Progress, Reservations
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import PATIENT_SECONDS, make_whole
from tests.support.values import Clock, claim, held, settlement

HOUR_MS = 3_600_000
NAMES = [f"r{number}" for number in range(4)]
names = st.sampled_from(NAMES)
states = st.sampled_from(list(State))
whys = st.sampled_from(sorted(STOPPING))


@dataclass(frozen=True, slots=True)
class Life:
    """What a request is to be by the table, whatever the stores do; `reserved` until it is settled."""

    step: Step
    events: int = 0
    stopping: str = ""
    reserved: bool = True

    def take(self, state: State) -> "Life | None":
        """After a step; None when the table does not allow it."""
        found = follow(self.step, Step(state, 0, next(iter(CAUSES.get(state, {None})))))
        return None if isinstance(found, Impossible) else replace(self, step=found)


class Followed(RuleBasedStateMachine):
    """Asks both stores for steps, and keeps a life of each request by the table."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.organization = f"org_{uuid4()}"
        self.lives: dict[str, Life] = {}
        self.told: list[bytes] = []
        self.memory = MemoryReservations(Clock().now_ms)
        self.client = Redis.from_url(url)
        self.pipe = RedisPipe(self.client.connection_pool.make_connection, deadline=PATIENT_SECONDS)
        self.redis = RedisReservations(self.pipe)
        self.runner.run(self._begin())

    def teardown(self) -> None:
        self.runner.run(self.pipe.aclose())
        self.runner.run(self.client.aclose())
        self.runner.close()

    @rule(name=names)
    def admit(self, name: str) -> None:
        asks = claim(
            name,
            held(),
            lease_ms=HOUR_MS,
            organization_id=self.organization,
            stage=State.ADMITTED,
            event=_event(name, State.ADMITTED),
        )
        self._both(lambda reservations: reservations.reserve(asks), lambda answer: answer.taken)
        if name not in self.lives:
            self.lives[name] = Life(Step(State.ADMITTED, 0))
            self.told.append(asks.event)

    @rule(name=names, state=states, events=st.integers(0, 9))
    def renew(self, name: str, state: State, events: int) -> None:
        says = Progress(stage=state, after=predecessors(state), events=events, event=_event(name, state))
        answer = self._both(
            lambda reservations: reservations.renew(self.organization, name, lease_ms=HOUR_MS, progress=says)
        )
        life = self._open(name)
        assert answer == (None if life is None else life.stopping)
        if life is not None:
            self.lives[name] = replace(life, events=max(life.events, events))
            self._take(name, state)

    @rule(name=names, state=st.sampled_from(sorted(FINAL)), copy=st.none() | st.just(b"copy"))
    def settle(self, name: str, state: State, copy: bytes | None) -> None:
        says = Progress(stage=state, after=predecessors(state), event=_event(name, state))
        ends = settlement(name, organization_id=self.organization, progress=says, admission=copy)
        done = self._both(lambda reservations: reservations.settle(ends))
        life = self.lives.get(name)
        if life is None and copy is not None:
            self.lives[name] = Life(Step(state, 0), reserved=False)
            self.told.append(says.event)
            assert done
        elif life is None or not life.reserved:
            assert not done
        else:
            assert done == self._take(name, state)
            if done:
                self.lives[name] = replace(self.lives[name], stopping="", reserved=False)

    @rule(name=names, why=whys)
    def stop(self, name: str, why: str) -> None:
        done = self._both(lambda reservations: reservations.stop(self.organization, name, why=why))
        life = self._open(name)
        assert done == (life is not None)
        if life is not None:
            self.lives[name] = replace(life, stopping=life.stopping or why)

    @invariant()
    def both_know_of_each_request_what_the_table_says(self) -> None:
        for name in NAMES:
            found = self._both(self._finding(name), _seen)
            life = self.lives.get(name)
            if life is None:
                assert found is None
            else:
                assert found is not None
                assert (found.stage, found.events, found.stopping) == (life.step.state, life.events, life.stopping)
                assert (found.ending is None) == (self._open(name) is not None)

    @invariant()
    def every_step_was_told_once_and_nothing_else(self) -> None:
        assert self.memory.log == self.told
        assert self.runner.run(self._log()) == self.told

    def _finding(self, name: str) -> Callable[[Reservations], Coroutine[Any, Any, Any]]:
        return lambda reservations: reservations.find(self.organization, name)

    def _open(self, name: str) -> Life | None:
        life = self.lives.get(name)
        return life if life is not None and life.reserved else None

    def _take(self, name: str, state: State) -> bool:
        following = self.lives[name].take(state)
        if following is not None:
            self.lives[name] = following
            self.told.append(_event(name, state))
        return following is not None

    def _both(
        self,
        ask: Callable[[Reservations], Coroutine[Any, Any, Any]],
        comparable: Callable[[Any], Any] = lambda answer: answer,
    ) -> Any:
        one, other = (self.runner.run(ask(kept)) for kept in (self.memory, self.redis))
        assert comparable(one) == comparable(other)
        return other

    async def _begin(self) -> None:
        await self.client.flushdb()
        await make_whole(self.client)

    async def _log(self) -> list[bytes]:
        entries: Any = await self.client.xrange(key_of(shard_of(self.organization), "log"))
        return [fields[b"event"] for _, fields in entries]


def _event(name: str, state: State) -> bytes:
    return f"{name}/{state}".encode()


def _seen(known: Known | None) -> Known | None:
    """The clocks differ."""
    return known and replace(known, at_ms=known.at_ms and 1)


@pytest.mark.timeout(120)
def test_both_stores_follow_the_table_and_tell_every_step(redis_server: OwnRedis) -> None:
    run_state_machine_as_test(
        lambda: Followed(redis_server.url),  # type: ignore[arg-type]
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None, report_multiple_bugs=False),
    )
