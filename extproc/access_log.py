"""How did each request really end? The gRPC access-log service: Envoy says it here, milliseconds after the end.

Entries are best effort and reach any worker. Periodic ones keep the lease of a running stream; the last one settles
the request.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from authz import arrival as arrivals
from authz import grant as grants
from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events, log_entry
from extproc.admission import LEASE_MS
from extproc.asked_end import as_asked
from extproc.lifecycle import Cause, State, predecessors
from extproc.record import Admission
from extproc.settlement import Settler
from quota.reservation import Progress, QuotaOutage, Reservations
from transport.service import Service, Stream

SERVICE_NAME = "envoy.service.accesslog.v3.AccessLogService"
# Envoy sends what it has every 20 ms (envoy/envoy.yaml, buffer_flush_interval): behind a message there is silence.
_SILENCE_SECONDS = 0.005
_BEFORE = {state: predecessors(state) for state in (State.DISPATCHED, State.STREAMING)}


class ObserveProgress(Protocol):
    """Is told how far a request has come that runs."""

    def __call__(self, admission: Admission, /, *, events: int, response_bytes: int) -> None:
        """So many events and bytes of its answer have passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told of the requests that run, at each sign of life; None for nobody.

    `first_byte`: the milliseconds that the Router took to the first byte of the answer. `progress`: how far it has
    come. `stopping`: why a request that runs on was to be stopped. `asked` knows why a request that has ended was.
    """

    first_byte: Callable[[Admission, int], None] | None = None
    progress: ObserveProgress | None = None
    stopping: Callable[[Admission, str], None] | None = None
    asked: Callable[[str], Cause | None] = lambda _: None


_NOBODY = Observers()


class AccessLog:
    """Takes Envoy's access log.

    `observe_error` is told of an entry that could not be read, `observers` of requests that run.

    Envoy keeps a stream where it has opened it. Who stands in for another ends it after `stay_seconds`, behind the next
    messages, when none is left: the one after them goes to the other again, if he is back.
    """

    def __init__(
        self,
        reservations: Reservations,
        settler: Settler,
        *,
        observe_error: Callable[[Exception], None],
        observers: Observers = _NOBODY,
        stay_seconds: float = math.inf,
    ) -> None:
        self._reservations = reservations
        self._settler = settler
        self._observe_error = observe_error
        self._observers = observers
        self._stay_seconds = stay_seconds

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={}, streams={"StreamAccessLogs": self.follow}, endless=True)

    async def follow(self, stream: Stream) -> None:
        """One Envoy thread's stream of entries, to its end."""
        clock = asyncio.get_running_loop().time
        leave_at = clock() + self._stay_seconds
        raw = await stream.read()
        while raw is not None:
            for entry in log_entry.log_entries(raw):
                try:
                    await self._take(entry)
                except msgspec.DecodeError as error:
                    self._observe_error(error)
            raw = await (stream.read() if clock() < leave_at else _read_if_any(stream))

    async def _take(self, entry: log_entry.LogEntry) -> None:
        if entry.is_end:
            self._settle(entry)
        elif entry.is_alive and entry.record:
            await self._renew(entry, admissions.decode(entry.record))

    async def _renew(self, entry: log_entry.LogEntry, admission: Admission) -> None:
        told, progress = self._observers, _progress(entry, admission)
        if told.first_byte is not None and entry.first_byte_ms is not None:
            told.first_byte(admission, entry.first_byte_ms)
        if told.progress is not None:
            told.progress(admission, events=progress.events, response_bytes=entry.response_bytes)
        try:
            why = await self._reservations.renew(
                admission.organization_id, admission.request_id, lease_ms=LEASE_MS, progress=progress
            )
        except QuotaOutage:
            return  # the next entry comes in seconds, well before the lease runs out
        if why and told.stopping is not None:
            told.stopping(admission, why)

    def _settle(self, entry: log_entry.LogEntry) -> None:
        if entry.record:
            admission = admissions.decode(entry.record)
            ending = endings.read(entry.observation(), admission)
            self._settler.settle(admission, as_asked(admission, ending, self._observers.asked(admission.request_id)))
            return
        grant_text, arrival_text = entry.grant_and_arrival
        if grant_text and not entry.is_refusal:
            # Check let it pass and Process did not answer for it: the client left meanwhile, or Process was too slow.
            # It may hold a reservation.
            admission = _unanswered(grant_text, arrival_text)
            self._settler.settle_if_reserved(admission, endings.read(entry.observation(), admission))


async def _read_if_any(stream: Stream) -> bytes | None:
    """The next message that has come; None when there is none. What has come and was not read would be lost."""
    try:
        async with asyncio.timeout(_SILENCE_SECONDS):
            return await stream.read()
    except TimeoutError:
        return None


def _progress(entry: log_entry.LogEntry, admission: Admission) -> Progress:
    """How far a request has come. What was seen of it before is not known here: the store takes only a step forward."""
    events, dispatched_ms = entry.events, entry.dispatched_ms
    if entry.response_bytes and (answered_ms := entry.answered_ms) is not None:
        state = State.STREAMING
        event = lifecycle_events.streaming(admission, answered_ms, dispatched_ms=dispatched_ms)
    elif dispatched_ms is not None:
        state, event = State.DISPATCHED, lifecycle_events.dispatched(admission, dispatched_ms)
    else:
        return Progress(stage="", after=(), events=events)
    return Progress(stage=state, after=_BEFORE[state], events=events, event=lifecycle_events.encode(event))


def _unanswered(grant_text: str, arrival_text: str) -> Admission:
    grant, arrival = grants.decode(grant_text), arrivals.decode(arrival_text)
    return Admission(
        request_id=arrival.request_id,
        organization_id=grant.organization_id,
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        key_id=grant.key_id,
        path=arrival.path,
        model="",
        stream=False,
        metering=grant.metering.value,
        received_ms=arrival.received_ms,
        admitted_ms=arrival.received_ms,
        input_estimate=0,
        output_reserved=0,
    )
