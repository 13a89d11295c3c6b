"""Our values and Envoy's messages, each read by the codec that the other side does not use."""

import json
from collections.abc import Callable, Mapping

import pytest

from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc import log_entry, wire
from extproc.lifecycle import STOPPING, Cause
from tests.extproc import envoy_messages as envoy
from tests.support.values import NOON_MS

HEADERS = [("x-ratelimit-limit-requests", "10"), ("ratelimit", '"a";r=9;t=60')]


def entry(usage: Mapping[str, float] | None = None, **changes: object) -> log_entry.LogEntry:
    namespaces = {} if usage is None else {wire.USAGE_NAMESPACE: usage}
    message = envoy.log_message(envoy.log_entry(namespaces=namespaces, **changes))  # type: ignore[arg-type]
    [found] = log_entry.log_entries(bytes(message))
    return found


def test_what_the_answer_tells_goes_beside_the_mark_of_the_admission() -> None:
    raw = wire.let_pass(record="r", body=None, strip_usage=False, headers=HEADERS)
    fields = envoy.read(raw).dynamic_metadata.fields[wire.ADMISSION_NAMESPACE].struct_value.fields
    assert fields["admitted"].string_value == "yes"
    told = fields["told"].struct_value.fields
    assert [(name, value.string_value) for name, value in sorted(told.items())] == sorted(HEADERS)


def test_with_nothing_to_tell_there_is_no_word_of_it() -> None:
    raw = wire.let_pass(record="r", body=None, strip_usage=False)
    assert set(envoy.read(raw).dynamic_metadata.fields[wire.ADMISSION_NAMESPACE].struct_value.fields) == {
        "admitted",
        "record",
    }


@pytest.mark.parametrize("answer", [wire.take_body, wire.show_body, wire.leave_body])
def test_what_was_told_is_dropped_with_the_response_headers(answer: Callable[[], bytes]) -> None:
    reply = envoy.read(answer())
    assert reply.response_headers is not None
    fields = reply.dynamic_metadata.fields[wire.ADMISSION_NAMESPACE].struct_value.fields
    assert {name: value.string_value for name, value in fields.items()} == {"told": ""}


def test_a_body_is_taken_shown_or_left() -> None:
    modes = {name: envoy.read(getattr(wire, name)()) for name in ("take_body", "show_body", "leave_body")}
    assert modes["take_body"].mode_override.response_body_mode.name == "FULL_DUPLEX_STREAMED"
    assert modes["show_body"].mode_override.response_body_mode.name == "STREAMED"
    for name in ("take_body", "show_body"):
        assert modes[name].mode_override.request_body_mode.name == "BUFFERED", "else its phase is dropped"
        assert modes[name].mode_override.response_trailer_mode.name == "SEND"
        assert modes[name].response_headers.response.header_mutation is None
    assert modes["leave_body"].mode_override is None
    assert modes["leave_body"].response_headers.response.header_mutation.remove_headers == ["content-length"]


@pytest.mark.parametrize("cause", sorted(STOPPING))
def test_a_stop_is_an_answer_that_names_its_cause(cause: Cause) -> None:
    raw = wire.stop(cause, dialect=Dialect.OPENAI_CHAT, request_id="r", now=0.0)
    reply = envoy.read(raw).immediate_response
    assert reply.details == f"sidecar_{cause}"
    error = json.loads(reply.body)["error"]
    assert Reason[error["code"].upper()].status == reply.status.code
    sent = {one.header.key: one.header.raw_value for one in reply.headers.set_headers}
    assert sent["x-should-retry"] == b"false"


def test_an_entry_tells_of_the_stream_and_of_what_the_router_said() -> None:
    [told] = log_entry.log_entries(
        bytes(
            envoy.log_message(
                envoy.log_entry(
                    namespaces={
                        wire.STREAM_NAMESPACE: {"done": "yes", "failed": "yes", "stopped": "revoked"},
                        wire.ROUTER_NAMESPACE: {"decision": "{}", "cost": "[]"},
                    },
                    dispatched_ms=1750.5,
                )
            )
        )
    )
    seen = told.observation()
    assert (seen.done, seen.failed, seen.stopped, seen.decision, seen.cost) == (True, True, "revoked", "{}", "[]")
    assert seen.dispatched_ms == NOON_MS + 250 + 1750
    silent = entry().observation()
    assert (silent.done, silent.failed, silent.stopped, silent.decision, silent.cost) == (False, False, "", "", "")
    assert silent.dispatched_ms is None


def test_a_refusal_tells_beside_its_own_headers() -> None:
    refusal = Refusal(reason=Reason.RATE_LIMIT_EXCEEDED, retry_after_ms=1500, headers=tuple(HEADERS))
    reply = envoy.read(wire.refuse(refusal, dialect=Dialect.OPENAI_CHAT, request_id="r", now=0.0)).immediate_response
    sent = [(one.header.key, one.header.raw_value.decode()) for one in reply.headers.set_headers]
    assert set(sent) == {
        ("content-type", "application/json"),
        *HEADERS,
        ("retry-after", "2"),
        ("retry-after-ms", "1500"),
    }


@pytest.mark.parametrize(
    ("usage", "found"),
    [
        (None, (None, None, None, None)),
        ({"prompt": 10, "output": 5}, (10, None, 5, None)),
        ({"prompt": 10, "output": 5, "cached": 0, "reasoning": 0}, (10, 0, 5, 0)),
        ({"prompt": 10, "output": 5, "cached": 4, "reasoning": 3}, (10, 4, 5, 3)),
        ({"input": 10, "output": 5, "cached": 4, "reasoning": 3}, (10, 4, 5, 3)),
        ({"input": 10, "output": 5, "cache_read": 0, "cache_written": 0}, (10, 0, 5, None)),
        ({"input": 10, "output": 5, "cache_read": 100}, (110, 100, 5, None)),
        ({"input": 10, "output": 5, "cache_written": 30}, (40, None, 5, None)),
        ({"input": 10, "output": 5, "cache_read": 100, "cache_written": 30}, (140, 100, 5, None)),
        ({"prompt": 140, "output": 5, "cache_read": 100, "cache_written": 30}, (140, 100, 5, None)),
        ({"prompt": 140, "output": 5, "cached": 90, "cache_read": 100}, (140, 90, 5, None)),
        ({"output": 5, "cache_read": 100}, (None, 100, 5, None)),
        ({"input": -1, "output": 2.0**53, "cached": -1}, (None, None, None, None)),
        ({"input": 2.0**53 - 1, "cache_read": 1, "output": 1}, (None, 1, 1, None)),
    ],
)
def test_all_tokens_in_are_told_and_none_twice(
    usage: dict[str, float] | None, found: tuple[int | None, int | None, int | None, int | None]
) -> None:
    seen = entry(usage).observation()
    assert (seen.input_tokens, seen.cached_tokens, seen.output_tokens, seen.reasoning_tokens) == found


@pytest.mark.parametrize(
    ("router_ms", "took"), [(None, None), ((3.9, 4.1), 0), ((3.0, 1503.5), 1500), ((10.0, 4.0), 0)]
)
def test_the_time_to_the_routers_first_byte(router_ms: tuple[float, float] | None, took: int | None) -> None:
    assert entry(router_ms=router_ms).first_byte_ms == took
