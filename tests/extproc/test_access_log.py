"""The access log, bytes in: the last entry settles, the periodic ones keep the lease, the unreadable stop nothing."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import pytest
from envoy_data_plane.envoy.data.accesslog import v3 as data

from extproc import admission as admissions
from extproc import ending as endings
from extproc import lifecycle_events
from extproc.access_log import SERVICE_NAME, AccessLog, Observers
from extproc.admission import LEASE_MS
from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageSource
from quota.charges import Rates, TokenUsage, charges
from tests.extproc import envoy_messages as envoy
from tests.extproc.flaky_reservations import Settling
from tests.extproc.memory_stream import MemoryStream
from tests.support.values import NOON_MS, REQUEST_ID, admission, arrival, grant, held, slots, tokens_a_day

TOKENS, SLOTS = tokens_a_day(1000), slots(3)
ADMITTED = {"gateway.admission": {"admitted": "yes", "record": admissions.encode(admission()).decode()}}
CHECKED = envoy.beside(grant(TOKENS, SLOTS), arrival())
FIVE_EVENTS = {"gateway.stream": {"events": 5.0, "bytes": 50.0}}
CLIENT_GONE = data.ResponseFlags(downstream_connection_termination=True)


@dataclass(slots=True)
class Logging:
    """An AccessLog over reservations in memory, which hold the request of the entries."""

    settling: Settling = field(default_factory=Settling)
    errors: list[Exception] = field(default_factory=list)

    async def reserve(self, *, lease_ms: int = LEASE_MS) -> None:
        asked = admissions.claim(admission(), held(TOKENS, SLOTS))
        await self.settling.flaky.kept.reserve(msgspec.structs.replace(asked, lease_ms=lease_ms))

    async def take(self, *entries: data.HttpAccessLogEntry, observers: Observers | None = None) -> None:
        stream = MemoryStream()
        log = AccessLog(
            self.settling.flaky,
            self.settling.settler,
            observe_error=self.errors.append,
            observers=observers or Observers(),
        )
        service = log.service()
        assert service.name == SERVICE_NAME
        # As Envoy does: an identifier first, then an entry a message, or several.
        stream.put(b"", *(envoy.log_message(entry) for entry in entries), envoy.log_message(*entries))
        stream.end()
        async with asyncio.timeout(10):
            await service.streams["StreamAccessLogs"](stream)
        await self.settling.settler.finish()
        assert not stream.written

    async def settled(self) -> list[tuple[Admission, Ending]]:
        return [
            (admissions.decode(event.admission), endings.decode(event.ending))
            for event in await self.settling.flaky.kept.read(count=100, wait_ms=0)
        ]

    async def held(self) -> tuple[int, ...]:
        return await self.settling.used(TOKENS, SLOTS)


@pytest.fixture
def logging() -> Logging:
    return Logging()


async def test_the_last_entry_settles_the_request_with_what_envoy_saw(logging: Logging) -> None:
    await logging.reserve()
    usage = {"gateway.usage": {"input": 7.0, "output": 30.0}}
    stream = {"gateway.stream": {"events": 32.0, "bytes": 4096.0, "first_event_ms": float(NOON_MS + 77)}}
    await logging.take(envoy.log_entry(response_bytes=4096, namespaces={**CHECKED, **ADMITTED, **usage, **stream}))
    [(admitted, ending)] = await logging.settled()
    assert admitted == admission()
    assert ending == Ending(
        state=State.COMPLETED,
        cause=Cause.FINISHED,
        status=200,
        input_tokens=7,
        output_tokens=30,
        usage_source=UsageSource.EXACT,
        events=32,
        response_bytes=4096,
        first_event_ms=NOON_MS + 77,
        ended_ms=NOON_MS + 250 + 1500,
        charges=charges(TokenUsage(input=7, output=30), Rates()),
    )
    assert await logging.held() == (37, 0)


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        ({}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": 0.0, "output": 0.0}}, (0, 0, UsageSource.EXACT)),
        ({"gateway.usage": {"output": 9.0}}, (20, 9, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": -1.0}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": 1e300}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": float("nan")}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": float("inf"), "output": -5.0}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": "many", "output": "more"}}, (20, 5, UsageSource.ESTIMATED)),
        ({"gateway.usage": {"input": 7.9, "output": 2.0}}, (7, 2, UsageSource.EXACT)),
    ],
)
async def test_usage_is_what_the_router_said_if_it_is_a_number(
    logging: Logging, usage: Mapping[str, Any], found: tuple[int, int, UsageSource]
) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(response_bytes=50, namespaces={**ADMITTED, **FIVE_EVENTS, **usage}))
    [(_, ending)] = await logging.settled()
    assert (ending.input_tokens, ending.output_tokens, ending.usage_source) == found


@pytest.mark.parametrize(
    ("mark", "passed_bytes", "events"),
    [
        ({"events": 8.0, "bytes": 800.0}, 800, 8),
        ({"events": 8.0, "bytes": 800.0}, 1500, 15),  # seven more since the mark, as dense
        ({"events": 8.0, "bytes": 800.0}, 1540, 15),
        ({"events": 8.0, "bytes": 800.0}, 700, 8),  # never fewer than were counted
        ({"events": 8.0, "bytes": 800.0}, 0, 8),
        ({}, 5000, 0),
        ({"events": 0.0, "bytes": 0.0}, 5000, 0),
        ({"events": 8.0, "bytes": -1.0}, 800, 0),
    ],
)
async def test_what_passed_after_the_last_mark_is_reckoned_by_its_bytes(
    logging: Logging, mark: Mapping[str, float], passed_bytes: int, events: int
) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(response_bytes=passed_bytes, namespaces={**ADMITTED, "gateway.stream": mark}))
    [(_, ending)] = await logging.settled()
    assert ending.events == events


@pytest.mark.parametrize("flags", [CLIENT_GONE, data.ResponseFlags(downstream_remote_reset=True)])
async def test_a_client_that_left_is_seen_by_either_flag(logging: Logging, flags: data.ResponseFlags) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(flags=flags, namespaces=ADMITTED))
    [(_, ending)] = await logging.settled()
    assert ending.state is State.CANCELLED


async def test_an_end_whose_reservation_is_lost_is_settled_from_the_entry_alone(logging: Logging) -> None:
    await logging.take(envoy.log_entry(namespaces=ADMITTED))
    assert [admitted for admitted, _ in await logging.settled()] == [admission()]


async def test_a_sign_of_life_keeps_the_lease_and_notes_the_progress(logging: Logging) -> None:
    await logging.reserve(lease_ms=1000)
    logging.settling.clock.ms += 900
    progress = {"gateway.stream": {"events": 8.0, "bytes": 80.0}}
    await logging.take(envoy.log_entry(kind=5, response_bytes=80, namespaces={**ADMITTED, **progress}))
    logging.settling.clock.ms += LEASE_MS - 1
    assert await logging.settling.flaky.overdue(limit=10) == []
    logging.settling.clock.ms += 1
    assert [late.events for late in await logging.settling.flaky.overdue(limit=10)] == [8]
    assert await logging.settled() == []


STARTED_MS = NOON_MS + 250


@pytest.mark.parametrize(
    ("entry", "stage", "since_ms"),
    [
        ({}, State.ADMITTED, None),
        ({"dispatched_ms": 30}, State.DISPATCHED, STARTED_MS + 30),
        ({"dispatched_ms": 30, "router_ms": (30, 80)}, State.DISPATCHED, STARTED_MS + 30),  # headers only
        ({"dispatched_ms": 30, "router_ms": (30, 80), "response_bytes": 5}, State.STREAMING, STARTED_MS + 80),
        ({"response_bytes": 5}, State.ADMITTED, None),  # the gateway's own answer
        ({"response_bytes": 80, "namespaces": {**ADMITTED, **FIVE_EVENTS}}, State.ADMITTED, None),
    ],
)
async def test_a_sign_of_life_takes_the_step_that_envoy_saw_and_tells_it_once(
    logging: Logging, entry: Mapping[str, Any], stage: State, since_ms: int | None
) -> None:
    await logging.reserve()
    whole: dict[str, Any] = {"kind": 5, "namespaces": ADMITTED, **entry}
    await logging.take(envoy.log_entry(**whole), envoy.log_entry(**whole))
    found = await logging.settling.flaky.kept.find("org_a", REQUEST_ID)
    assert found is not None
    assert found.stage == stage
    told = [lifecycle_events.decode(text) for text in logging.settling.flaky.kept.log]
    assert told[0] == lifecycle_events.admitted(admission())
    streaming = partial(lifecycle_events.streaming, dispatched_ms=STARTED_MS + 30)
    steps: dict[State, Any] = {State.DISPATCHED: lifecycle_events.dispatched, State.STREAMING: streaming}
    assert told[1:] == ([] if since_ms is None else [steps[stage](admission(), since_ms)])


async def test_the_first_event_is_when_the_stream_began(logging: Logging) -> None:
    await logging.reserve()
    stream = {"gateway.stream": {"events": 5.0, "bytes": 50.0, "first_event_ms": float(NOON_MS + 333)}}
    await logging.take(envoy.log_entry(kind=5, response_bytes=80, namespaces={**ADMITTED, **stream}, router_ms=(1, 2)))
    told = lifecycle_events.decode(logging.settling.flaky.kept.log[-1])
    assert told.data.state is State.STREAMING
    assert told.data.first_event_ms == NOON_MS + 333


async def test_an_entry_that_was_overtaken_takes_no_step_back(logging: Logging) -> None:
    await logging.reserve()
    later = envoy.log_entry(kind=5, namespaces=ADMITTED, dispatched_ms=30, router_ms=(30, 80), response_bytes=5)
    await logging.take(later)
    await logging.take(envoy.log_entry(kind=5, namespaces=ADMITTED, dispatched_ms=30))
    assert [known.stage for known in await logging.settling.flaky.kept.open_of("org_a", "ten_a", limit=9)] == [
        State.STREAMING
    ]


@dataclass(slots=True)
class Told:
    """What those who observe were told."""

    first_bytes: list[int] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)
    stopping: list[str] = field(default_factory=list)

    def observers(self) -> Observers:
        return Observers(
            first_byte=lambda _, ms: self.first_bytes.append(ms),
            progress=self._progress,
            stopping=lambda _, why: self.stopping.append(why),
        )

    def _progress(self, _: Admission, *, events: int, response_bytes: int) -> None:
        self.progress.append((events, response_bytes))


async def test_who_observes_is_told_of_each_sign_of_life(logging: Logging) -> None:
    await logging.reserve()
    told = Told()
    stream = {"gateway.stream": {"events": 8.0, "bytes": 80.0}}
    alive = envoy.log_entry(kind=5, response_bytes=80, namespaces={**ADMITTED, **stream}, router_ms=(30, 80))
    await logging.take(alive, observers=told.observers())
    assert told == Told(first_bytes=[50, 50], progress=[(8, 80), (8, 80)])
    await logging.settling.flaky.kept.stop("org_a", REQUEST_ID, why="revoked")
    await logging.take(alive, observers=told.observers())
    assert told.stopping == ["revoked", "revoked"], "as long as it runs"
    await logging.take(envoy.log_entry(response_bytes=80, namespaces=ADMITTED), observers=told.observers())
    assert len(told.progress) == 4, "an end is no sign of life"


async def test_progress_is_told_in_an_outage_too_and_of_a_stop_nobody_knows_then(logging: Logging) -> None:
    await logging.reserve()
    await logging.settling.flaky.kept.stop("org_a", REQUEST_ID, why="revoked")
    logging.settling.flaky.out = True
    told = Told()
    await logging.take(envoy.log_entry(kind=5, namespaces=ADMITTED), observers=told.observers())
    assert told == Told(progress=[(0, 0), (0, 0)])


async def test_a_sign_of_life_during_an_outage_is_let_go(logging: Logging) -> None:
    await logging.reserve()
    logging.settling.flaky.out = True
    await logging.take(envoy.log_entry(kind=5, namespaces=ADMITTED))
    assert logging.errors == []


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 7, 8, 9, 10])
async def test_entries_of_other_kinds_say_nothing(logging: Logging, kind: int) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(kind=kind, namespaces=ADMITTED))
    assert await logging.settled() == []
    assert logging.settling.flaky.asked == []


@pytest.mark.parametrize("reserved", [True, False])
async def test_who_left_before_process_had_answered_is_settled_only_if_room_was_taken(
    logging: Logging, *, reserved: bool
) -> None:
    if reserved:
        await logging.reserve()
    gone = envoy.log_entry(status=0, details="downstream_remote_disconnect", flags=CLIENT_GONE, namespaces=CHECKED)
    await logging.take(gone)
    assert await logging.held() == (0, 0)
    settled = await logging.settled()
    assert [(admitted.request_id, ending.state) for admitted, ending in settled] == (
        [(REQUEST_ID, State.CANCELLED)] if reserved else []
    )
    if reserved:
        assert settled[0][0] == admission(), "the store's own record wins"


async def test_who_was_refused_by_a_dead_sidecar_is_settled_if_room_was_taken(logging: Logging) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(status=503, details="rbac_access_denied", namespaces=CHECKED))
    [(_, ending)] = await logging.settled()
    assert (ending.cause, ending.input_tokens, ending.output_tokens) == (Cause.GATEWAY_ERROR, 0, 0)
    assert await logging.held() == (0, 0)


@pytest.mark.parametrize(
    ("details", "namespaces"),
    [
        ("sidecar_rate_limit_exceeded", CHECKED),  # Process refused
        ("ext_authz_denied", {}),  # Check refused
        ("request_payload_too_large", {}),
        ("direct_response", {}),
    ],
)
async def test_who_was_refused_is_not_settled(
    logging: Logging, details: str, namespaces: Mapping[str, Mapping[str, str | float]]
) -> None:
    await logging.take(envoy.log_entry(status=400, details=details, namespaces=namespaces))
    assert logging.settling.flaky.asked == []
    assert logging.errors == []


@pytest.mark.parametrize(
    "namespaces",
    [
        {"gateway.admission": {"record": "{}"}},
        {"gateway.admission": {"record": "nonsense"}},
        {envoy.AUTHZ: {"grant": "nonsense"}},
        {envoy.AUTHZ: {**CHECKED[envoy.AUTHZ], "arrival": ""}},
    ],
)
async def test_an_entry_that_cannot_be_read_is_told_and_the_next_is_taken(
    logging: Logging, namespaces: Mapping[str, Mapping[str, str | float]]
) -> None:
    await logging.reserve()
    await logging.take(envoy.log_entry(namespaces=namespaces), envoy.log_entry(namespaces=ADMITTED))
    assert len(await logging.settled()) == 1
    assert logging.errors
    assert all(isinstance(error, msgspec.DecodeError) for error in logging.errors)


async def test_who_only_stands_in_reads_what_has_come_before_it_leaves(logging: Logging) -> None:
    """A whole second's entries may wait in the stream when the time has come; whoever is next does not get them."""
    await logging.reserve()
    stream = MemoryStream()
    log = AccessLog(
        logging.settling.flaky, logging.settling.settler, observe_error=logging.errors.append, stay_seconds=0.0
    )
    other = envoy.log_message(envoy.log_entry(namespaces={}))
    stream.put(b"", other, other, envoy.log_message(envoy.log_entry(namespaces={**CHECKED, **ADMITTED})))
    async with asyncio.timeout(10):
        await log.follow(stream)  # though nobody ends the stream
    await logging.settling.settler.finish()
    assert len(await logging.settled()) == 1
