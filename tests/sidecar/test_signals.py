"""The recorder publishes, the workers read; both go on without Redis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from extproc.ending import read
from extproc.lifecycle import Cause, State
from extproc.record import Ending, UsageSource
from quota.estimate import Delta, Estimate, Estimates
from quota.overload import FEWEST_REQUESTS, SIGNAL_SECONDS, Shedding, Targets
from quota.reservation import QuotaOutage
from sidecar.signals import Publisher, Reader, lesson_of
from tests.support.values import Clock, admission, observation

TARGETS = Targets(first_byte_ms=1000, error_share=0.1)


@dataclass(slots=True)
class Wire:
    """Carries signals inside the test."""

    deltas: dict[str, Delta] = field(default_factory=dict)
    said: list[int] = field(default_factory=list)
    known: dict[str, Estimate] = field(default_factory=dict)
    share: int = 0
    out: bool = False

    async def learn(self, deltas: Mapping[str, Delta]) -> None:
        self._require()
        self.deltas.update(deltas)

    async def estimates(self) -> dict[str, Estimate]:
        self._require()
        return self.known

    async def say_shed(self, replica: str, share: int) -> None:
        assert replica == "one"
        self._require()
        self.said.append(share)

    async def shed(self) -> int:
        self._require()
        return self.share

    def _require(self) -> None:
        if self.out:
            raise QuotaOutage("the test says so")


@dataclass(slots=True)
class Publishing:
    """A publisher, with its clock and its wire."""

    wire: Wire = field(default_factory=Wire)
    clock: Clock = field(default_factory=Clock)
    targets: Targets = TARGETS
    publisher: Publisher = field(init=False)

    def __post_init__(self) -> None:
        self.publisher = Publisher(self.wire, replica="one", targets=self.targets, now_ms=self.clock.now_ms)

    def settle(self, count: int = FEWEST_REQUESTS, **changes: Any) -> None:
        """So many requests that end now, admitted five seconds ago."""
        admitted_ms = self.clock.ms - 5000
        for _ in range(count):
            self.publisher.observe(admission(admitted_ms=admitted_ms), _ending(ended_ms=self.clock.ms, **changes))

    async def shed(self, steps: int = 1) -> int:
        for _ in range(steps):
            await self.publisher.tick()
        return self.publisher.shed


@pytest.fixture
def publishing() -> Publishing:
    return Publishing()


def _ending(*, wait_ms: int | None = 300, **changes: Any) -> Ending:
    whole = read(observation(input_tokens=20, output_tokens=12), admission())
    ended_ms = changes["ended_ms"]
    first_event_ms = None if wait_ms is None else ended_ms - 5000 + wait_ms
    return msgspec.structs.replace(whole, first_event_ms=first_event_ms, **changes)


async def test_what_was_learned_is_published_once(publishing: Publishing) -> None:
    publishing.publisher.observe(admission(input_bytes=80), _ending(ended_ms=publishing.clock.ms))
    await publishing.publisher.tick()
    learned = publishing.wire.deltas.pop("demo")
    assert (learned.lessons, learned.bytes, learned.millitokens) == (1, 80, 20_000)
    await publishing.publisher.tick()
    assert publishing.wire.deltas == {}


@pytest.mark.parametrize(
    "changes",
    [{"usage_source": UsageSource.ESTIMATED}, {"state": State.CANCELLED}, {"state": State.FAILED}],
)
def test_only_exact_usage_of_completed_requests_is_learned(changes: dict[str, Any]) -> None:
    assert lesson_of(admission(), _ending(ended_ms=0)) is not None
    assert lesson_of(admission(), _ending(ended_ms=0, **changes)) is None


def test_an_answer_that_was_cut_off_says_nothing_of_others() -> None:
    cut = lesson_of(admission(output_reserved=100), _ending(ended_ms=0, output_tokens=100))
    whole = lesson_of(admission(output_reserved=100), _ending(ended_ms=0, output_tokens=99))
    assert cut is not None
    assert whole is not None
    assert (cut.output_tokens, whole.output_tokens) == (None, 99)


async def test_slow_first_bytes_shed_and_quick_ones_recover(publishing: Publishing) -> None:
    publishing.settle(wait_ms=3000)
    assert await publishing.shed() == 200
    publishing.settle(wait_ms=100)
    assert await publishing.shed() == 190
    assert publishing.wire.said == [200, 190]


async def test_nothing_is_said_while_nothing_is_shed(publishing: Publishing) -> None:
    publishing.settle(wait_ms=1100)
    assert await publishing.shed() > 0
    assert await publishing.shed(200) == 0
    said = list(publishing.wire.said)
    assert said[-1] == 0
    await publishing.shed()
    assert publishing.wire.said == said


@pytest.mark.parametrize(
    "failure",
    [
        {"cause": Cause.UPSTREAM_ERROR, "status": 503},
        {"cause": Cause.UPSTREAM_RESET, "status": 503},
        {"cause": Cause.UPSTREAM_TIMEOUT, "status": 504},
    ],
)
async def test_server_errors_shed(publishing: Publishing, failure: dict[str, Any]) -> None:
    publishing.settle(8)
    publishing.settle(2, state=State.FAILED, **failure)
    assert await publishing.shed() > 0


@pytest.mark.parametrize(
    "other",
    [
        {"cause": Cause.UPSTREAM_ERROR, "status": 400},
        {"cause": Cause.UPSTREAM_ERROR, "status": 429},
        {"cause": Cause.CLIENT_DISCONNECT, "status": 0},
        {"cause": Cause.GATEWAY_ERROR, "status": 503},
    ],
)
async def test_what_is_not_the_routers_failure_does_not(publishing: Publishing, other: dict[str, Any]) -> None:
    publishing.settle(50, state=State.FAILED, **other)
    publishing.settle(50)
    assert await publishing.shed() == 0


async def test_an_answer_without_events_took_as_long_as_it_lasted(publishing: Publishing) -> None:
    publishing.settle(wait_ms=None)
    assert await publishing.shed() == 200


async def test_who_gave_up_waiting_counts_when_that_was_too_long_already(publishing: Publishing) -> None:
    publishing.settle(wait_ms=None, cause=Cause.CLIENT_DISCONNECT, state=State.CANCELLED)
    assert await publishing.shed() == 200
    patient = Publishing(targets=Targets(first_byte_ms=6000))
    patient.settle(wait_ms=None, cause=Cause.CLIENT_DISCONNECT, state=State.CANCELLED)
    assert await patient.shed() == 0


async def test_errors_that_come_quickly_do_not_hide_slow_answers(publishing: Publishing) -> None:
    publishing.settle(10, wait_ms=3000)
    publishing.settle(1, wait_ms=1, cause=Cause.UPSTREAM_ERROR, status=500, state=State.FAILED)
    publishing.settle(45, wait_ms=None, cause=Cause.UPSTREAM_ERROR, status=400, state=State.FAILED)
    publishing.settle(45, wait_ms=1, cause=Cause.UPSTREAM_ERROR, status=400, state=State.FAILED)
    assert await publishing.shed() == 200


async def test_a_first_byte_of_long_ago_says_nothing(publishing: Publishing) -> None:
    long_ago = publishing.clock.ms - 60_000
    for _ in range(FEWEST_REQUESTS):
        publishing.publisher.observe(
            admission(admitted_ms=long_ago), _ending(ended_ms=publishing.clock.ms), first_byte_ms=3000
        )
    assert await publishing.shed() == 0
    for _ in range(FEWEST_REQUESTS):
        publishing.publisher.observe_alive(admission(admitted_ms=publishing.clock.ms - 4000), first_byte_ms=3000)
    assert await publishing.shed() == 200


async def test_an_outage_loses_what_was_learned_and_nothing_else(publishing: Publishing) -> None:
    publishing.wire.out = True
    publishing.settle(wait_ms=3000)
    assert await publishing.shed() == 200
    publishing.wire.out = False
    await publishing.shed(20)
    assert publishing.publisher.shed == publishing.wire.said[-1] == 0
    assert publishing.wire.deltas == {}


@dataclass(slots=True)
class Reading:
    """A reader with what it keeps."""

    wire: Wire = field(default_factory=Wire)
    clock: Clock = field(default_factory=Clock)
    estimates: Estimates = field(default_factory=Estimates)
    shedding: Shedding = field(init=False)
    reader: Reader = field(init=False)

    def __post_init__(self) -> None:
        self.shedding = Shedding(self.clock.now)
        self.reader = Reader(self.wire, self.estimates, self.shedding)

    def refused(self) -> int:
        return sum(self.shedding.refuses(0, f"request-{number}") for number in range(100))


async def test_a_worker_goes_by_what_is_read() -> None:
    reading = Reading(Wire(known={"m": Estimate(millibytes=2000, output_tokens=64)}, share=500))
    assert reading.refused() == 0
    await reading.reader.tick()
    assert reading.estimates.input_tokens("m", 100) == 50
    assert reading.estimates.output_tokens("m", 512) == 64
    assert 30 < reading.refused() < 70
    reading.wire.share = 0
    await reading.reader.tick()
    assert reading.refused() == 0


async def test_in_an_outage_estimates_stay_and_shedding_ends() -> None:
    reading = Reading(Wire(known={"m": Estimate(millibytes=2000)}, share=950))
    reading.refused()
    await reading.reader.tick()
    reading.wire.out = True
    await reading.reader.tick()
    assert reading.refused() > 80
    reading.clock.ms += int(SIGNAL_SECONDS * 1000)
    await reading.reader.tick()
    assert reading.refused() == 0
    assert reading.estimates.input_tokens("m", 100) == 50


async def test_a_redis_that_was_emptied_takes_no_estimate_away() -> None:
    reading = Reading(Wire(known={"m": Estimate(millibytes=2000)}))
    await reading.reader.tick()
    reading.wire.known = {}
    await reading.reader.tick()
    assert reading.estimates.input_tokens("m", 100) == 50
