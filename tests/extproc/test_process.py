"""Process, bytes to bytes over a stream in memory: who is admitted, what is refused, and what becomes of the slot."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from authz.grant import Grant
from authz.principal import Metering
from authz.refusal import Reason, Refusal
from extproc import admission as admissions
from extproc.admission import LEASE_MS
from extproc.idempotency import Replay
from extproc.lifecycle import Cause
from extproc.live import LiveRequests
from extproc.process import SERVICE_NAME, ExternalProcessor
from extproc.record import Admission, Degraded
from extproc.settlement import GRACE_SECONDS
from quota.limit import OnOutage
from tests.extproc import envoy_messages as envoy
from tests.extproc.admitting import Admitting
from tests.extproc.flaky_reservations import Settling
from tests.extproc.memory_stream import MemoryStream
from tests.support.values import (
    NOON_MS,
    REQUEST_ID,
    admission,
    arrival,
    grant,
    sliding,
    slots,
    tokens_a_day,
)

TOKENS, SLOTS = tokens_a_day(1000), slots(1)
GRACE_MS = int(GRACE_SECONDS * 1000)
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
SSE = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'


@dataclass(slots=True)
class Processing:
    """An ExternalProcessor over reservations in memory."""

    admitting: Admitting = field(default_factory=Admitting)
    observed: list[Admission | Refusal | Replay] = field(default_factory=list)
    stopped: list[Cause] = field(default_factory=list)
    live: LiveRequests = field(init=False)
    processor: ExternalProcessor = field(init=False)

    def __post_init__(self) -> None:
        self.live = LiveRequests(observe=self.stopped.append)
        self.processor = ExternalProcessor(
            self.admitting.admitter,
            self.live,
            self.admitting.once,
            now=self.settling.clock.now,
            observe=self.observed.append,
        )

    @property
    def settling(self) -> Settling:
        return self.admitting.settling

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[MemoryStream]:
        """One ext_proc stream, which Envoy ends at the end of the block."""
        stream = MemoryStream()
        handler = self.processor.service().streams["Process"]
        task = asyncio.ensure_future(handler(stream))
        task.add_done_callback(lambda _: stream.close())
        try:
            yield stream
            stream.end()
            async with asyncio.timeout(10):
                await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def held(self) -> tuple[int, ...]:
        return await self.settling.used(TOKENS, SLOTS)


@pytest.fixture
def processing() -> Processing:
    return Processing()


def _asked(body: Any = None, *, grant_of: Grant | None = None, **changes: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(CHAT if body is None else body).encode()
    return envoy.request_body(raw, envoy.beside(grant_of or grant(TOKENS, SLOTS), arrival(**changes)))


def _refused(raw: bytes, reason: Reason) -> dict[str, Any]:
    answer = envoy.read(raw).immediate_response
    assert int(answer.status.code) == reason.status
    assert answer.details == f"sidecar_{reason.code}"
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert error["code"] == reason.code
    headers = {option.header.key: option.header.raw_value.decode() for option in answer.headers.set_headers}
    assert headers["content-type"] == "application/json"
    # ext_proc reads `raw_value`; a `value` would give an empty header.
    assert not any(option.header.value for option in answer.headers.set_headers)
    return {**error, "headers": headers}


def _marks(raw: bytes) -> dict[str, str]:
    fields = envoy.read(raw).dynamic_metadata.fields["gateway.admission"].struct_value.fields
    return {name: value.string_value for name, value in fields.items() if value.string_value is not None}


def test_the_service_is_envoys() -> None:
    service = Processing().processor.service()
    assert (service.name, set(service.streams), dict(service.unary)) == (SERVICE_NAME, {"Process"}, {})


async def test_a_request_with_room_is_admitted_with_its_record_and_no_change(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked())
        raw = await stream.answer()
        assert await processing.held() == (processing_estimate() + 100, 1)
    answer = envoy.read(raw)
    assert answer.request_body.response.body_mutation is None
    assert answer.immediate_response is None
    marks = _marks(raw)
    record = admissions.decode(marks.pop("record"))
    assert marks == {"admitted": "yes"}
    assert record == admission(
        stream=False,
        input_estimate=processing_estimate(),
        input_bytes=len(json.dumps(CHAT)),
        admitted_ms=NOON_MS,
        output_reserved=100,
    )
    assert processing.observed == [record]
    # What Check left has done its work: it need not fill the access log.
    left = answer.dynamic_metadata.fields[envoy.AUTHZ].struct_value.fields
    assert {name: value.string_value for name, value in left.items()} == {"grant": "", "arrival": ""}


def processing_estimate() -> int:
    return -(-len(json.dumps(CHAT)) // 4)


async def test_how_the_limits_stand_goes_along_for_the_answer(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked(grant_of=grant(sliding(9, name="requests_per_minute"))))
        raw = await stream.answer()
    told = envoy.read(raw).dynamic_metadata.fields["gateway.admission"].struct_value.fields["told"].struct_value
    assert told.fields["x-ratelimit-remaining-requests"].string_value == "8"


async def test_a_stream_is_asked_for_usage_that_will_be_removed(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked({**CHAT, "stream": True}))
        raw = await stream.answer()
    sent = json.loads(envoy.read(raw).request_body.response.body_mutation.body)
    assert sent == {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    assert _marks(raw)["strip_usage"] == "yes"


async def test_the_body_is_whole_without_end_of_stream_when_trailers_follow(processing: Processing) -> None:
    message = envoy.request_body(
        json.dumps(CHAT).encode(), envoy.beside(grant(TOKENS, SLOTS), arrival()), end_of_stream=False
    )
    async with processing.stream() as stream:
        stream.put(message)
        assert _marks(await stream.answer())["admitted"] == "yes"


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        (b"", Reason.INVALID_JSON, None),
        (b"{", Reason.INVALID_JSON, None),
        (b"[]", Reason.INVALID_BODY, None),
        ({**CHAT, "model": 4}, Reason.INVALID_BODY, "model"),
        ({"model": "m", "messages": []}, Reason.INVALID_BODY, "messages"),
        (b"[" * 10_000, Reason.INVALID_BODY, None),
    ],
)
async def test_a_bad_body_is_refused_and_takes_nothing(
    processing: Processing, body: Any, reason: Reason, param: str | None
) -> None:
    async with processing.stream() as stream:
        stream.put(_asked(body))
        error = _refused(await stream.answer(), reason)
    assert (error["param"], error["request_id"]) == (param, REQUEST_ID)
    assert await processing.held() == (0, 0)
    assert processing.settling.flaky.asked == []
    assert isinstance(processing.observed[0], Refusal)


async def test_a_body_nested_beyond_all_reason_is_refused_like_any_other(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked(json.dumps(CHAT).encode()[:-1] + b',"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"))
        answer = envoy.read(await stream.answer()).immediate_response
        assert int(answer.status.code) == 400


async def test_the_body_of_infer_has_the_shape_of_infer(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked({"model": "m", "input": "x"}, path="/v1/infer"))
        assert _marks(await stream.answer())["admitted"] == "yes"


async def test_a_request_without_a_grant_is_refused(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(envoy.request_body(json.dumps(CHAT).encode(), {}))
        _refused(await stream.answer(), Reason.MISSING_CREDENTIALS)
    assert await processing.held() == (0, 0)


async def test_a_full_window_is_told_with_the_time_to_retry(processing: Processing) -> None:
    limited = grant(sliding(1, name="requests_per_minute"))
    async with processing.stream() as first:
        first.put(_asked(grant_of=limited))
        await first.answer()
    async with processing.stream() as second:
        second.put(_asked(grant_of=limited, request_id="other"))
        error = _refused(await second.answer(), Reason.RATE_LIMIT_EXCEEDED)
    assert error["details"] == {
        "limit": "requests_per_minute",
        "per": "tenant",
        "unit": "requests",
        "ceiling": 1,
        "used": 1,
        "window": "sliding",
        "seconds": 60,
    }
    assert error["headers"]["x-ratelimit-remaining-requests"] == "0"
    retry_ms = int(error["headers"]["retry-after-ms"])
    assert 60_000 <= retry_ms <= 61_000
    assert error["headers"]["retry-after"] == str(-(-retry_ms // 1000))


async def test_a_request_larger_than_its_limit_is_told_so_and_not_to_retry(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked({**CHAT, "max_tokens": 5000}))
        error = _refused(await stream.answer(), Reason.EXCEEDS_LIMIT)
    assert error["details"]["limit"] == TOKENS.name
    assert "retry-after" not in error["headers"]
    assert await processing.held() == (0, 0)


async def test_when_the_limits_cannot_be_asked_the_request_is_refused_and_what_it_took_is_undone(
    processing: Processing,
) -> None:
    settling = processing.settling
    settling.flaky.deaf = True  # the reservation is made, its answer lost
    async with processing.stream() as stream:
        stream.put(_asked())
        error = _refused(await stream.answer(), Reason.LIMITS_UNAVAILABLE)
    assert error["headers"]["retry-after"] == "1"
    settling.flaky.deaf = False
    await settling.settler.finish()
    assert await processing.held() == (0, 0)
    assert await settling.flaky.kept.read(count=10, wait_ms=0) == []


async def _turns_until(condition: Callable[[], bool]) -> None:
    """Let the loop turn, no longer than needed."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a turn of the loop is what is waited for
            await asyncio.sleep(0)


async def test_a_client_that_leaves_while_room_is_taken_leaves_nothing_behind(processing: Processing) -> None:
    settling = processing.settling
    settling.flaky.held = asyncio.Event()
    stream = MemoryStream()
    task = asyncio.create_task(processing.processor.process(stream))
    stream.put(_asked())
    await _turns_until(lambda: "reserve" in settling.flaky.asked)
    task.cancel()  # gRPC ends the handler
    await asyncio.gather(task, return_exceptions=True)
    settling.flaky.held.set()
    await settling.settler.finish()
    assert await processing.held() == (0, 0)
    assert not stream.written


async def test_a_stop_that_comes_while_room_is_taken_ends_the_request_as_soon_as_it_is_let_pass(
    processing: Processing,
) -> None:
    settling = processing.settling
    settling.flaky.held = asyncio.Event()
    async with processing.stream() as stream:
        stream.put(_asked())
        await _turns_until(lambda: "reserve" in settling.flaky.asked)
        processing.live.stop(REQUEST_ID, Cause.CLIENT_CANCEL)
        assert not stream.written
        settling.flaky.held.set()
        assert _marks(await stream.answer())["admitted"] == "yes"
        assert envoy.read(await stream.answer()).immediate_response.details == "sidecar_client_cancel"
    assert (processing.stopped, processing.live.count) == ([Cause.CLIENT_CANCEL], 0)
    # Should its log entry be lost, it is known all the same why it ended.
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert [ending.cause for _, ending in settling.observed] == [Cause.CLIENT_CANCEL]


async def test_a_stop_of_what_is_then_refused_is_not_written(processing: Processing) -> None:
    processing.settling.flaky.held = asyncio.Event()
    async with processing.stream() as stream:
        stream.put(_asked({**CHAT, "max_tokens": 5000}))
        await _turns_until(lambda: "reserve" in processing.settling.flaky.asked)
        processing.live.stop(REQUEST_ID, Cause.CLIENT_CANCEL)
        processing.settling.flaky.held.set()
        _refused(await stream.answer(), Reason.EXCEEDS_LIMIT)
    assert (list(stream.written), processing.stopped) == ([], [])


async def test_in_line_a_stop_ends_the_stream_with_an_event_and_later_pieces_get_no_answer(
    processing: Processing,
) -> None:
    async with processing.stream() as stream:
        await _inline(stream)
        stream.put(envoy.response_body(SSE))
        await stream.answer()
        processing.live.stop(REQUEST_ID, Cause.REVOKED)
        last, ends = _streamed(envoy.read(await stream.answer()))
        assert (b"credential_revoked" in last, ends) == (True, True)
        stream.put(envoy.response_body(SSE), envoy.response_body(b"", end_of_stream=True))
    assert not stream.written
    assert processing.stopped == [Cause.REVOKED]


async def test_what_passes_in_an_outage_is_marked_in_its_record_and_gives_its_share_back(
    processing: Processing,
) -> None:
    processing.settling.flaky.out = True
    local = msgspec.structs.replace(slots(4), on_outage=OnOutage.LOCAL)
    for request_id in "ab":  # this worker's share is one slot
        async with processing.stream() as stream:
            stream.put(_asked(grant_of=grant(local), request_id=request_id))
            record = admissions.decode(_marks(await stream.answer())["record"])
        assert record.degraded is Degraded.LOCAL
    assert processing.admitting.shares.running == 0


async def test_a_used_up_budget_is_told_as_not_worth_retrying(processing: Processing) -> None:
    budget = grant(tokens_a_day(150, name="tokens_per_day"))
    async with processing.stream() as first:
        first.put(_asked(grant_of=budget))
        await first.answer()
    async with processing.stream() as second:
        second.put(_asked(grant_of=budget, request_id="other"))
        error = _refused(await second.answer(), Reason.INSUFFICIENT_QUOTA)
    assert error["type"] == "insufficient_quota"
    assert error["headers"]["x-should-retry"] == "false"
    assert int(error["headers"]["retry-after"]) == 12 * 3600


async def test_when_the_stream_ends_the_settler_waits_for_the_log_and_then_settles(processing: Processing) -> None:
    settling = processing.settling
    async with processing.stream() as stream:
        stream.put(_asked())
        await stream.answer()
    settling.clock.ms += GRACE_MS - 1
    await settling.settler.tick()
    assert (await processing.held())[1] == 1
    settling.clock.ms += 2
    await settling.settler.tick()
    await settling.settler.finish()
    assert (await processing.held())[1] == 0
    assert len(await settling.flaky.kept.read(count=10, wait_ms=0)) == 1


async def test_an_answer_that_envoy_has_is_not_called_lost_while_its_client_reads(processing: Processing) -> None:
    settling = processing.settling
    async with processing.stream() as stream:
        await _inline(stream)
        stream.put(envoy.response_body(SSE, end_of_stream=True))
        await stream.answer()
    settling.clock.ms += GRACE_MS + 1
    await settling.settler.tick()
    await settling.settler.finish()
    assert (await processing.held())[1] == 1


@pytest.mark.parametrize("again", ["model", "Model", "mod\\u0065l"])
async def test_a_model_named_twice_is_refused_for_limits_and_prices_go_by_it(
    processing: Processing, again: str
) -> None:
    body = f'{{"model":"cheap","messages":[{{"role":"user","content":"x"}}],"{again}":"dear"}}'
    async with processing.stream() as stream:
        stream.put(_asked(body.encode()))
        answer = envoy.read(await stream.answer()).immediate_response
    assert answer is not None
    error = json.loads(answer.body)["error"]
    assert (error["code"], error["param"]) == ("invalid_body", "model")


async def test_a_refused_request_is_never_settled(processing: Processing) -> None:
    async with processing.stream() as stream:
        stream.put(_asked(b"{"))
        await stream.answer()
    processing.settling.clock.ms += 10 * GRACE_MS
    await processing.settling.settler.tick()
    await processing.settling.settler.finish()
    assert processing.settling.flaky.asked == []


async def test_a_handler_that_is_cancelled_in_mid_stream_still_tells_the_settler(processing: Processing) -> None:
    stream = MemoryStream()
    task = asyncio.create_task(processing.processor.process(stream))
    stream.put(_asked())
    await stream.answer()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    processing.settling.clock.ms += GRACE_MS + 1
    await processing.settling.settler.tick()
    await processing.settling.settler.finish()
    assert (await processing.held())[1] == 0


async def _inline(stream: MemoryStream, *, stream_options: dict[str, Any] | None = None) -> None:
    body = {**CHAT, "stream": True}
    if stream_options is not None:
        body["stream_options"] = stream_options
    stream.put(_asked(body, grant_of=grant(TOKENS, SLOTS, metering=Metering.INLINE)))
    await stream.answer()
    stream.put(envoy.response_headers(content_type="text/event-stream; charset=utf-8"))
    assert envoy.read(await stream.answer()).response_headers is not None


async def _pieces(stream: MemoryStream, count: int) -> list[Any]:
    return [envoy.read(await stream.answer()) for _ in range(count)]


def _streamed(answer: Any) -> tuple[bytes, bool]:
    streamed = answer.response_body.response.body_mutation.streamed_response
    return streamed.body, streamed.end_of_stream


async def test_in_line_each_chunk_is_passed_and_the_usage_that_only_we_asked_for_is_removed(
    processing: Processing,
) -> None:
    async with processing.stream() as stream:
        await _inline(stream)
        stream.put(envoy.response_body(SSE + SSE[:10]), envoy.response_body(SSE[10:] + USAGE))
        stream.put(envoy.response_body(b"data: [DONE]\n\n"), envoy.response_body(b"", end_of_stream=True))
        answers = await _pieces(stream, 4)
    assert [_streamed(answer) for answer in answers] == [
        (SSE, False),
        (SSE, False),
        (b"data: [DONE]\n\n", False),
        (b"", True),
    ]
    assert [_progress(answer) for answer in answers] == [
        {"events": 1, "bytes": len(SSE), "first_event_ms": NOON_MS},
        {"events": 2, "bytes": 2 * len(SSE)},
        {"events": 3, "bytes": 2 * len(SSE) + len(b"data: [DONE]\n\n"), "done": "yes"},
        {},
    ]


def _progress(answer: Any) -> dict[str, float | str]:
    if answer.dynamic_metadata is None:
        return {}
    fields = answer.dynamic_metadata.fields["gateway.stream"].struct_value.fields
    return {
        name: value.number_value if value.string_value is None else value.string_value for name, value in fields.items()
    }


async def test_in_line_every_event_is_marked_at_first_and_then_every_eighth(processing: Processing) -> None:
    async with processing.stream() as stream:
        await _inline(stream)
        stream.put(*[envoy.response_body(SSE)] * 30)
        marked = [_progress(answer).get("events") for answer in await _pieces(stream, 30)]
    assert [events for events in marked if events is not None] == [1, 2, 3, 4, 5, 6, 7, 15, 23]


async def test_in_line_usage_that_the_client_asked_for_passes(processing: Processing) -> None:
    async with processing.stream() as stream:
        await _inline(stream, stream_options={"include_usage": True})
        stream.put(envoy.response_body(USAGE, end_of_stream=True))
        [answer] = await _pieces(stream, 1)
    assert _streamed(answer) == (USAGE, True)


async def test_in_line_the_first_event_has_its_time(processing: Processing) -> None:
    async with processing.stream() as stream:
        await _inline(stream)
        marks = []
        for piece in (SSE[:5], SSE[5:], SSE):
            processing.settling.clock.ms += 70
            stream.put(envoy.response_body(piece))
            marks.append(_progress((await _pieces(stream, 1))[0]).get("first_event_ms"))
    assert marks == [None, NOON_MS + 140, None]


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
async def test_in_line_a_long_chunk_is_passed_in_pieces_that_envoy_takes(
    processing: Processing, content_type: str, size: int
) -> None:
    body = bytes(number % 251 for number in range(size)).replace(b"\n", b"x")
    async with processing.stream() as stream:
        stream.put(_asked({**CHAT, "stream": True, "stream_options": {"include_usage": True}}))
        await stream.answer()
        stream.put(envoy.response_headers(content_type=content_type))
        await stream.answer()
        stream.put(envoy.response_body(body, end_of_stream=True))
        pieces = [_streamed(answer) for answer in await _pieces(stream, max(1, -(-size // 65_536)))]
    assert b"".join(piece for piece, _ in pieces) == body
    assert all(len(piece) <= 65_536 for piece, _ in pieces)
    assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [True]


async def test_in_line_trailers_are_answered(processing: Processing) -> None:
    async with processing.stream() as stream:
        await _inline(stream)
        stream.put(envoy.response_trailers())
        assert envoy.read(await stream.answer()).response_trailers is not None


def test_a_lease_outlives_a_few_lost_entries() -> None:
    assert LEASE_MS == 20_000
