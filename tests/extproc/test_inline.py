"""What happens to a response that passes through the sidecar, and how it is ended there."""

from collections.abc import Iterable
from typing import Any

import pytest

from authz.caps import NO_CAPS, Caps
from authz.routes import Dialect
from extproc import stop, wire
from extproc.inline import InlineResponse
from extproc.lifecycle import Cause
from tests.extproc import envoy_messages as envoy
from tests.extproc.streams import IN_EITHER, Known
from tests.support.values import NOON_MS

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
NOW = NOON_MS / 1000
LAST = stop.last_events(Cause.OUTPUT_LIMIT, dialect=Dialect.OPENAI_CHAT, request_id="r", now=NOW)


def response(
    content_type: str = "text/event-stream", caps: Caps = NO_CAPS, *, strips: bool = True, coded: bool = False
) -> InlineResponse:
    """One whose headers have passed."""
    found = InlineResponse(strip_usage=strips, caps=caps, dialect=Dialect.OPENAI_CHAT, request_id="r")
    message = envoy.response_headers(content_type=content_type)
    if coded:
        message.metadata_context = envoy.metadata({wire.CODING_NAMESPACE: {"is_coded": "yes"}})
    _, read = wire.read(bytes(message))
    reply = envoy.read(found.headers(read))
    assert (reply.mode_override is None) is coded
    return found


def piece(body: bytes, *, last: bool = False) -> Any:
    return wire.read(bytes(envoy.response_body(body, end_of_stream=last)))[1]


def passed(replies: Iterable[bytes]) -> tuple[bytes, bool, dict[str, Any], dict[str, Any]]:
    """What the client gets, whether that is the end, and what is noted of the stream and of the Router's words."""
    body, ended = b"", False
    noted: dict[str, dict[str, Any]] = {wire.STREAM_NAMESPACE: {}, wire.ROUTER_NAMESPACE: {}}
    for raw in replies:
        reply = envoy.read(raw)
        streamed = reply.response_body.response.body_mutation.streamed_response
        assert not ended
        body, ended = body + streamed.body, streamed.end_of_stream
        fields = reply.dynamic_metadata.fields if reply.dynamic_metadata else {}
        for namespace, value in fields.items():
            for name, one in value.struct_value.fields.items():
                noted[namespace][name] = one.string_value if one.number_value is None else int(one.number_value)
    return body, ended, noted[wire.STREAM_NAMESPACE], noted[wire.ROUTER_NAMESPACE]


def fed(found: InlineResponse, *bodies: bytes, ends: bool = True) -> tuple[bytes, bool, dict[str, Any], dict[str, Any]]:
    last = len(bodies) - 1
    replies = [
        raw
        for at, body in enumerate(bodies)
        for raw in found.body(piece(body, last=ends and at == last), now_ms=NOON_MS)
    ]
    return passed(replies)


@pytest.mark.parametrize("strips", [True, False], ids=["strips", "keeps"])
@pytest.mark.parametrize("known", IN_EITHER, ids=lambda known: known.name)
def test_a_stream_is_passed_on_and_noted(known: Known, *, strips: bool) -> None:
    halves = (known.whole[:100], known.whole[100:])
    body, ended, stream, words = fed(response(strips=strips), *halves)
    client = known.client(strips=strips)
    assert (body, ended, words) == (client, True, known.words)
    assert (stream["events"], stream["bytes"]) == (known.events(strips=strips), len(client))
    assert (stream.get("done"), stream.get("failed")) == (
        "yes" if known.done else None,
        "yes" if known.failed else None,
    )


def test_what_has_an_end_in_trailers_loses_nothing() -> None:
    found = response(strips=False)
    fed(found, EVENT, b"data: half", ends=False)
    *bodies, trailers = found.trailers()
    assert passed(bodies)[:2] == (b"data: half", False)
    assert envoy.read(trailers).response_trailers is not None
    assert found.ended


def test_a_stream_can_be_stopped_with_a_last_event() -> None:
    found = response()
    assert fed(found, EVENT * 3 + b"data: half", ends=False)[0] == EVENT * 3
    replies = found.stop(Cause.OUTPUT_LIMIT, now=NOW)
    assert replies is not None
    body, ended, stream, _ = passed(replies)
    assert (body, ended) == (LAST, True), "a half event is void, and never sent"
    assert stream == {"stopped": "output_limit", "events": 3, "bytes": len(EVENT) * 3 + len(LAST)}
    assert found.stopped is Cause.OUTPUT_LIMIT
    # What was on its way is not answered.
    assert list(found.body(piece(EVENT), now_ms=NOON_MS)) == []
    assert list(found.trailers()) == []
    assert found.stop(Cause.REVOKED, now=NOW) is None


def test_a_stream_is_stopped_before_its_first_event() -> None:
    replies = response().stop(Cause.CLIENT_CANCEL, now=NOW)
    assert replies is not None
    assert passed(replies)[2] == {"stopped": "client_cancel"}


def test_what_is_no_event_stream_or_has_ended_has_no_last_event() -> None:
    assert InlineResponse(strip_usage=True).stop(Cause.REVOKED, now=NOW) is None, "no headers yet"
    assert response("application/json").stop(Cause.REVOKED, now=NOW) is None
    assert response(coded=True).stop(Cause.REVOKED, now=NOW) is None
    ended = response()
    fed(ended, EVENT, DONE)
    assert ended.ended
    assert ended.stop(Cause.REVOKED, now=NOW) is None


@pytest.mark.parametrize("caps", [Caps(output_tokens=4), Caps(response_bytes=12 * len(EVENT))])
def test_a_stream_ends_when_it_passes_its_caps(caps: Caps) -> None:
    found = response(caps=caps)
    body, ended, stream, _ = fed(found, *[EVENT] * 20, ends=False)
    assert (body, ended, stream["stopped"]) == (EVENT * 13 + LAST, True, "output_limit")
    assert found.stopped is Cause.OUTPUT_LIMIT


def test_a_stream_that_says_its_end_with_the_last_of_its_caps_has_ended() -> None:
    found = response(caps=Caps(output_tokens=1, response_bytes=100))
    body, ended, stream, _ = fed(found, EVENT * 20 + DONE, b"", ends=True)
    assert (body, ended, stream["done"]) == (EVENT * 20 + DONE, True, "yes")
    assert found.stopped is None


def test_what_is_no_event_stream_is_broken_off_by_envoy() -> None:
    found = response("application/json", Caps(response_bytes=100))
    *bodies, stopped = found.body(piece(b"x" * 101), now_ms=NOON_MS)
    assert passed(bodies)[:2] == (b"x" * 101, False)
    assert envoy.read(stopped).immediate_response.details == "sidecar_output_limit"
    assert found.stopped is Cause.OUTPUT_LIMIT
