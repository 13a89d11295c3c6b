"""A stop may come at any moment of a request's life: it is written once, in its place, or not at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.caps import Caps
from authz.routes import Dialect
from extproc import wire
from extproc.holder import Holder, holder_of
from extproc.inline import InlineResponse
from extproc.lifecycle import STOPPING, Cause
from extproc.live import LiveRequest, LiveRequests
from tests.extproc import envoy_messages as envoy
from tests.extproc.memory_stream import MemoryStream
from tests.support.values import NOON_MS, REQUEST_ID, admission, arrival

SSE = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
REPLY = b"let pass"
CAUSES = pytest.mark.parametrize("cause", sorted(STOPPING))


def _live(stream: MemoryStream, **changes: Any) -> LiveRequest:
    return LiveRequest(stream, arrival(**changes), now=lambda: NOON_MS / 1000)


def _response(caps: Caps | None = None) -> InlineResponse:
    return InlineResponse(strip_usage=False, caps=caps or Caps(), dialect=Dialect.OPENAI_CHAT, request_id=REQUEST_ID)


def _take(live: LiveRequest, message: Any) -> None:
    live.take(*wire.read(bytes(message)))


def _passed(stream: MemoryStream, content_type: str = "", caps: Caps | None = None) -> LiveRequest:
    """A request that runs; its answer has begun to pass here if it has a content type."""
    live = _live(stream)
    live.let_pass(REPLY, admission(), _response(caps))
    if content_type:
        _take(live, envoy.response_headers(content_type=content_type))
    stream.written.clear()
    return live


def _reset(raw: bytes, cause: Cause) -> dict[str, Any]:
    """The error of an answer that Envoy gives at once."""
    answer = envoy.read(raw).immediate_response
    assert answer.details == f"sidecar_{cause}"
    error: dict[str, Any] = json.loads(answer.body)["error"]
    return error


def _streamed(raw: bytes) -> tuple[bytes, bool]:
    streamed = envoy.read(raw).response_body.response.body_mutation.streamed_response
    return streamed.body, streamed.end_of_stream


@CAUSES
def test_what_does_not_pass_here_is_reset_with_its_cause(cause: Cause) -> None:
    stream = MemoryStream()
    live = _passed(stream)
    live.stop(cause)
    [raw] = stream.written
    assert _reset(raw, cause)["request_id"] == REQUEST_ID
    assert live.stopped is cause


def test_a_second_stop_writes_nothing_and_the_first_cause_stays() -> None:
    stream = MemoryStream()
    live = _passed(stream)
    live.stop(Cause.REVOKED)
    live.stop(Cause.CLIENT_CANCEL)
    assert (len(stream.written), live.stopped) == (1, Cause.REVOKED)


def test_a_stop_that_comes_before_the_answer_is_written_right_behind_it() -> None:
    stream = MemoryStream()
    live = _live(stream)
    live.stop(Cause.CLIENT_CANCEL)
    assert (list(stream.written), live.stopped) == ([], None)
    live.let_pass(REPLY, admission(), _response())
    reply, stop = stream.written
    assert reply == REPLY
    _reset(stop, Cause.CLIENT_CANCEL)
    assert live.stopped is Cause.CLIENT_CANCEL


@CAUSES
def test_an_event_stream_that_passes_here_ends_with_an_event(cause: Cause) -> None:
    stream = MemoryStream()
    live = _passed(stream, "text/event-stream")
    _take(live, envoy.response_body(SSE))
    stream.written.clear()
    live.stop(cause)
    [raw] = stream.written
    last, ends = _streamed(raw)
    assert ends
    assert last.startswith(b"data: {")
    assert last.endswith(b"data: [DONE]\n\n")


def test_pieces_that_were_on_their_way_get_no_answer_any_more() -> None:
    stream = MemoryStream()
    live = _passed(stream, "text/event-stream")
    live.stop(Cause.CLIENT_CANCEL)
    stream.written.clear()
    for message in (envoy.response_body(SSE), envoy.response_body(b"", end_of_stream=True), envoy.response_trailers()):
        _take(live, message)
    assert not stream.written


@pytest.mark.parametrize("content_type", ["", "application/json"])
def test_what_passes_here_and_is_no_event_stream_is_reset(content_type: str) -> None:
    stream = MemoryStream()
    live = _passed(stream, content_type)
    live.stop(Cause.CLIENT_CANCEL)
    _reset(stream.written.pop(), Cause.CLIENT_CANCEL)
    _take(live, envoy.response_headers(content_type="text/event-stream"))
    assert not stream.written, "the headers were on their way"


@pytest.mark.parametrize("last", [envoy.response_body(SSE, end_of_stream=True), envoy.response_trailers()])
def test_an_answer_that_envoy_has_whole_is_not_stopped(last: Any) -> None:
    stream = MemoryStream()
    live = _passed(stream, "text/event-stream")
    _take(live, last)
    stream.written.clear()
    live.stop(Cause.CLIENT_CANCEL)
    assert (list(stream.written), live.stopped) == ([], None)


def test_a_stream_that_passes_its_cap_here_is_known_to_be_stopped() -> None:
    stream = MemoryStream()
    live = _passed(stream, "text/event-stream", Caps(response_bytes=2 * len(SSE)))
    for _ in range(3):
        _take(live, envoy.response_body(SSE))
    assert live.stopped is Cause.OUTPUT_LIMIT
    assert _streamed(stream.written[-1])[1]


STEPS = {
    "headers": envoy.response_headers(content_type="text/event-stream"),
    "json": envoy.response_headers(content_type="application/json"),
    "piece": envoy.response_body(SSE),
    "end": envoy.response_body(b"", end_of_stream=True),
}


LIVES = [
    ("pass",),
    ("pass", "headers"),
    ("pass", "headers", "piece", "piece"),
    ("pass", "headers", "piece", "end"),
    ("pass", "json", "piece", "end"),
]


@given(st.sampled_from(LIVES), st.integers(0, 4), st.lists(st.sampled_from(sorted(STOPPING)), min_size=1, max_size=3))
def test_wherever_a_stop_comes_nothing_follows_it(steps: tuple[str, ...], at: int, causes: list[Cause]) -> None:
    stream = MemoryStream()
    live = _live(stream)
    for number in range(max(len(steps), at) + 1):
        if number == at:
            for cause in causes:
                live.stop(cause)
        step = steps[number] if number < len(steps) else ""
        if step == "pass":
            live.let_pass(REPLY, admission(), _response())
        elif step:
            _take(live, STEPS[step])
    was_whole = steps[-1] == "end" and at >= len(steps)
    assert live.stopped is (None if was_whole else causes[0])
    reply, *answers = stream.written
    assert reply == REPLY
    assert [_ends(raw) for raw in answers] == [False] * (len(answers) - 1) + [True]


def _ends(raw: bytes) -> bool:
    answer = envoy.read(raw)
    return answer.immediate_response is not None or (answer.response_body is not None and _streamed(raw)[1])


def _started(requests: LiveRequests, request_id: str, **changes: Any) -> tuple[LiveRequest, MemoryStream]:
    stream = MemoryStream()
    live = _live(stream, request_id=request_id)
    requests.add(live)
    live.let_pass(REPLY, admission(request_id=request_id, **changes), _response())
    stream.written.clear()
    return live, stream


def test_only_the_request_that_is_meant_is_stopped_and_each_is_told_at_its_end() -> None:
    told: list[Cause] = []
    requests = LiveRequests(observe=told.append)
    (one, of_one), (other, of_other) = _started(requests, "a"), _started(requests, "b")
    assert requests.count == 2
    requests.stop("a", Cause.CLIENT_CANCEL)
    requests.stop("of another worker", Cause.CLIENT_CANCEL)
    assert (len(of_one.written), len(of_other.written), told) == (1, 0, [])
    requests.remove(one)
    requests.remove(other)
    assert (told, requests.count) == ([Cause.CLIENT_CANCEL], 0)


def test_what_has_ended_is_not_stopped() -> None:
    requests = LiveRequests(observe=lambda _: None)
    live, stream = _started(requests, "a")
    requests.remove(live)
    requests.stop("a", Cause.CLIENT_CANCEL)
    assert not stream.written


def test_the_end_of_one_does_not_hide_another_of_the_same_id() -> None:
    requests = LiveRequests(observe=lambda _: None)
    first, _ = _started(requests, "a")
    _, stream = _started(requests, "a")
    requests.remove(first)
    requests.stop("a", Cause.CLIENT_CANCEL)
    assert len(stream.written) == 1


def test_all_of_a_holder_are_stopped_and_no_others() -> None:
    requests = LiveRequests(observe=lambda _: None)
    streams = {
        name: _started(requests, name, key_id=name[0], principal_id=f"key_{name[0]}")[1] for name in ("k1", "k2", "l1")
    }
    pending = _live(MemoryStream(), request_id="not admitted yet")
    requests.add(pending)
    assert requests.holders() == {_holder("k"), _holder("l")}
    requests.stop_of({_holder("k")}, Cause.REVOKED)
    assert {name: len(stream.written) for name, stream in streams.items()} == {"k1": 1, "k2": 1, "l1": 0}


def _holder(key_id: str) -> Holder:
    return holder_of(admission(key_id=key_id, principal_id=f"key_{key_id}"))
