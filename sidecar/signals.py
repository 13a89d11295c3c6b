"""Who learns how long answers are and whether the Router is overloaded, and who is told?

The recorder, which hears how every request ended, runs the `Publisher`; each worker runs the `Reader`. Both work once
a second, off the path of any request, and go on without Redis: estimates stay as they are, shedding ends.
"""

import asyncio
from collections.abc import Callable, Mapping
from statistics import median_low
from typing import Protocol

from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageSource
from quota.estimate import Delta, Estimate, Estimates, Learner, Lesson
from quota.overload import FEWEST_REQUESTS, Controller, Sample, Shedding, Targets
from quota.reservation import QuotaOutage

_SECONDS = 1.0
# A long stream is settled when its first byte is history.
_FRESH_MS = 10_000
# What a second keeps of its first-byte times; their median needs no more.
_MOST_TIMES = 10_000
_SERVER_ERROR = 500
_FAILED = frozenset({Cause.UPSTREAM_RESET, Cause.UPSTREAM_TIMEOUT})
_JUDGED = _FAILED | {Cause.FINISHED, Cause.UPSTREAM_ERROR, Cause.DEADLINE}
_REFUSED = frozenset({Cause.UPSTREAM_ERROR, Cause.GATEWAY_ERROR})
# These end a wait for the first byte that would have been longer.
_CUT_SHORT = _FAILED | {Cause.CLIENT_DISCONNECT}


class Signals(Protocol):
    """Carries signals between processes. Each method raises `QuotaOutage` when that cannot be done now."""

    async def learn(self, deltas: Mapping[str, Delta]) -> None:
        """Add what was learned of models."""

    async def estimates(self) -> dict[str, Estimate]:
        """What is known of each model; empty when nothing is."""

    async def say_shed(self, replica: str, share: int) -> None:
        """Say that this replica wants that share of the work shed, in thousandths, for the next seconds."""

    async def shed(self) -> int:
        """The highest share that a replica wants shed, in thousandths."""


class Publisher:
    """Learns from settled requests, judges each second whether the Router is overloaded, and tells the others.

    `now_ms` is milliseconds since the epoch; `pressure` Envoy's own, 0 to 1.
    """

    def __init__(
        self,
        signals: Signals,
        *,
        replica: str,
        targets: Targets,
        now_ms: Callable[[], int],
        pressure: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._signals = signals
        self._replica = replica
        self._targets = targets
        self._now_ms = now_ms
        self._pressure = pressure
        self._learner = Learner()
        self._controller = Controller(targets)
        self._said = 0
        self._requests = self._server_errors = 0
        self._times: list[int] = []

    @property
    def shed(self) -> int:
        """The share of the work that this replica wants shed, in thousandths."""
        return self._controller.shed

    def observe(self, admission: Admission, ending: Ending, first_byte_ms: int | None = None) -> None:
        """A request was settled. `first_byte_ms` is what the Router took to its first byte, when that is known."""
        lesson = lesson_of(admission, ending)
        if lesson is not None:
            self._learner.learn(lesson)
        if ending.cause in _JUDGED:
            self._requests += 1
            self._server_errors += _router_failed(ending)
        waited_ms = self._waited_ms(admission, ending, first_byte_ms)
        if waited_ms is not None:
            self._observe_first_byte(admission, waited_ms)

    def observe_alive(self, admission: Admission, first_byte_ms: int) -> None:
        """A running stream was reported. Its first byte, when it came just now, tells more than at the stream's end."""
        self._observe_first_byte(admission, first_byte_ms)

    async def run(self) -> None:
        """Publish once a second, until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            await self.tick()

    async def tick(self) -> None:
        """One round of `run`. What Redis does not take is lost; there is more of it every second."""
        share = self._controller.step(self._sample())
        deltas = self._learner.take()
        try:
            if share or self._said:
                await self._signals.say_shed(self._replica, share)
                self._said = share
            if deltas:
                await self._signals.learn(deltas)
        except QuotaOutage:
            return

    def _waited_ms(self, admission: Admission, ending: Ending, first_byte_ms: int | None) -> int | None:
        """How long the caller waited for the first byte; None when the ending does not say."""
        if first_byte_ms is None and ending.first_event_ms is not None:
            first_byte_ms = max(0, ending.first_event_ms - admission.admitted_ms)
        if first_byte_ms is not None:
            # An error is soon said, by the Router as by the gateway.
            return None if ending.cause in _REFUSED else first_byte_ms
        waited_ms = max(0, ending.ended_ms - admission.admitted_ms)
        # A wait that was cut short says something only when it was too long already.
        too_long = self._targets.first_byte_ms is not None and waited_ms > self._targets.first_byte_ms
        said = ending.cause is Cause.FINISHED or (ending.cause in _CUT_SHORT and too_long)
        return waited_ms if said else None

    def _observe_first_byte(self, admission: Admission, first_byte_ms: int) -> None:
        fresh = self._now_ms() - admission.admitted_ms - first_byte_ms <= _FRESH_MS
        if fresh and len(self._times) < _MOST_TIMES:
            self._times.append(first_byte_ms)

    def _sample(self) -> Sample:
        sample = Sample(
            requests=max(self._requests, len(self._times)),
            server_errors=self._server_errors,
            first_byte_ms=median_low(self._times) if len(self._times) >= FEWEST_REQUESTS else None,
            pressure=self._pressure(),
        )
        self._requests = self._server_errors = 0
        self._times.clear()
        return sample


class Reader:
    """Keeps a worker's estimates and shedding up to date."""

    def __init__(self, signals: Signals, estimates: Estimates, shedding: Shedding) -> None:
        self._signals = signals
        self._estimates = estimates
        self._shedding = shedding

    async def run(self) -> None:
        """Read at once and then every second, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(_SECONDS)

    async def tick(self) -> None:
        """One round of `run`. In an outage all stays as it is, but shedding, which ends by its age."""
        try:
            known, share = await asyncio.gather(self._signals.estimates(), self._signals.shed())
        except QuotaOutage:
            return
        self._shedding.shed(share)
        if known:  # a Redis that has been emptied knows less than this worker
            self._estimates.replace(known)


def lesson_of(admission: Admission, ending: Ending) -> Lesson | None:
    """What a settled request teaches; None unless it came to its end and the Router said what it used."""
    if ending.state is not State.COMPLETED or ending.usage_source is not UsageSource.EXACT:
        return None
    # Exactly as long as was reserved: cut off at the caller's maximum.
    whole = admission.output_reserved > 0 and ending.output_tokens != admission.output_reserved
    return Lesson(
        model=admission.model,
        tenant_id=admission.tenant_id,
        input_bytes=admission.input_bytes,
        input_tokens=ending.input_tokens,
        output_tokens=ending.output_tokens if whole else None,
    )


def _router_failed(ending: Ending) -> bool:
    return ending.cause in _FAILED or ending.status >= _SERVER_ERROR
