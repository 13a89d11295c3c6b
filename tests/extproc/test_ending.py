"""How a request ended and what is charged: one row for each end that Envoy 1.40 was seen to report."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import ending as endings
from extproc.ending import Observation, lost, read
from extproc.lifecycle import FINAL, Cause, State
from extproc.record import Ending, UsageSource
from tests.support.values import NOON_MS, admission, observation

EXACT, ESTIMATED = UsageSource.EXACT, UsageSource.ESTIMATED
CANCELLED, FAILED, TIMED_OUT, COMPLETED = State.CANCELLED, State.FAILED, State.TIMED_OUT, State.COMPLETED
REMOTE_DISCONNECT = "downstream_remote_disconnect"
AFTER, BEFORE = "upstream_reset_after_response_started", "upstream_reset_before_response_started"
# Nothing of an answer was seen.
NONE = {"events": 0, "response_bytes": 0, "first_event_ms": None}


@pytest.mark.parametrize(
    ("seen", "state", "cause", "usage"),
    [
        # The client leaves: while uploading or before the answer, in the stream, by HTTP/2 reset.
        (
            {"status": 0, "details": REMOTE_DISCONNECT, "client_gone": True, **NONE},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 0, ESTIMATED)),
        ),
        (
            {"details": REMOTE_DISCONNECT, "client_gone": True},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 12, ESTIMATED)),
        ),
        (
            {"details": "http2.remote_reset", "client_gone": True},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 12, ESTIMATED)),
        ),
        (
            {"details": "via_upstream", "client_gone": True},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 12, ESTIMATED)),
        ),
        (
            {"details": REMOTE_DISCONNECT, "client_gone": False},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 12, ESTIMATED)),
        ),
        # After the first byte of the head, before any event.
        (
            {"details": REMOTE_DISCONNECT, "client_gone": True, **NONE},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (20, 0, ESTIMATED)),
        ),
        # The Router breaks off in the stream, or before its answer.
        ({"details": f"{AFTER}{{protocol_error}}"}, FAILED, Cause.UPSTREAM_RESET, (20, 12, ESTIMATED)),
        ({"details": f"{AFTER}{{remote_reset}}"}, FAILED, Cause.UPSTREAM_RESET, (20, 12, ESTIMATED)),
        (
            {"status": 503, "details": f"{BEFORE}{{connection_termination}}", **NONE},
            *(FAILED, Cause.UPSTREAM_RESET, (0, 0, ESTIMATED)),
        ),
        ({"status": 503, "details": "no_healthy_upstream", **NONE}, FAILED, Cause.UPSTREAM_RESET, (0, 0, ESTIMATED)),
        # Too slow: before the answer, in the stream; too long altogether.
        ({"status": 504, "details": "response_timeout", **NONE}, TIMED_OUT, Cause.UPSTREAM_TIMEOUT, (0, 0, ESTIMATED)),
        ({"details": "response_timeout"}, TIMED_OUT, Cause.UPSTREAM_TIMEOUT, (20, 12, ESTIMATED)),
        ({"details": "stream_idle_timeout"}, TIMED_OUT, Cause.UPSTREAM_TIMEOUT, (20, 12, ESTIMATED)),
        (
            {"status": 504, "details": "stream_idle_timeout", **NONE},
            *(TIMED_OUT, Cause.UPSTREAM_TIMEOUT, (0, 0, ESTIMATED)),
        ),
        ({"details": "max_duration_timeout"}, TIMED_OUT, Cause.DEADLINE, (20, 12, ESTIMATED)),
        # To its end, with and without the Router's own numbers.
        ({}, COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
        ({"input_tokens": 7, "output_tokens": 30}, COMPLETED, Cause.FINISHED, (7, 30, EXACT)),
        ({"input_tokens": 0, "output_tokens": 0}, COMPLETED, Cause.FINISHED, (0, 0, EXACT)),
        ({"status": 204, **NONE}, COMPLETED, Cause.FINISHED, (20, 0, ESTIMATED)),
        # The Router says no: what it did not serve is not charged, what it says it used is.
        ({"status": 500, **NONE}, FAILED, Cause.UPSTREAM_ERROR, (0, 0, EXACT)),
        ({"status": 429, **NONE}, FAILED, Cause.UPSTREAM_ERROR, (0, 0, EXACT)),
        ({"status": 302, **NONE}, FAILED, Cause.UPSTREAM_ERROR, (0, 0, EXACT)),
        ({"status": 500, "input_tokens": 7, **NONE}, FAILED, Cause.UPSTREAM_ERROR, (7, 0, EXACT)),
        # Admitted by Check, never by Process; the client left meanwhile, or the sidecar did not answer.
        (
            {"status": 0, "details": REMOTE_DISCONNECT, "client_gone": True, "passed": False, **NONE},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (0, 0, EXACT)),
        ),
        (
            {"status": 503, "details": "rbac_access_denied_matched_policy[none]", "passed": False, **NONE},
            *(FAILED, Cause.GATEWAY_ERROR, (0, 0, EXACT)),
        ),
        (
            {"status": 503, "details": "ext_proc_error_gRPC_error_14{x}", "passed": False, **NONE},
            *(FAILED, Cause.GATEWAY_ERROR, (0, 0, EXACT)),
        ),
        # The usage that came before a break-off is the Router's own word.
        (
            {"details": REMOTE_DISCONNECT, "client_gone": True, "output_tokens": 9, "input_tokens": 7},
            *(CANCELLED, Cause.CLIENT_DISCONNECT, (7, 9, EXACT)),
        ),
    ],
)
def test_each_end_that_envoy_reports(
    seen: dict[str, Any], state: State, cause: Cause, usage: tuple[int, int, UsageSource]
) -> None:
    found = read(observation(**seen), admission())
    assert (found.state, found.cause) == (state, cause)
    assert (found.input_tokens, found.output_tokens, found.usage_source) == usage


def test_a_stream_that_the_gateway_itself_cut_is_charged_for_what_was_produced() -> None:
    # Metered in line, a dying worker cuts the stream: Envoy reports status 200 and the failed ext_proc stream.
    found = read(observation(details="ext_proc_error_gRPC_error_13{x}"), admission(metering="inline"))
    assert (found.state, found.cause) == (State.FAILED, Cause.GATEWAY_ERROR)
    assert (found.input_tokens, found.output_tokens, found.usage_source) == (20, 12, ESTIMATED)


@pytest.mark.parametrize(
    ("stream", "events", "response_bytes", "output"),
    [(True, 12, 4096, 12), (True, 0, 4096, 0), (False, 0, 4096, 1024), (False, 0, 1, 1), (False, 0, 0, 0)],
)
def test_output_nobody_counted_is_estimated_by_events_or_by_bytes(
    *, stream: bool, events: int, response_bytes: int, output: int
) -> None:
    seen = observation(events=events, response_bytes=response_bytes)
    assert read(seen, admission(stream=stream)).output_tokens == output


def test_what_was_admitted_without_output_has_none_to_tell() -> None:
    embeddings = admission(stream=False, output_reserved=0)
    told = read(observation(input_tokens=7, events=0), embeddings)
    assert (told.input_tokens, told.output_tokens, told.usage_source) == (7, 0, EXACT)


def test_what_was_seen_is_kept() -> None:
    found = read(observation(status=201, events=3), admission())
    assert (found.status, found.events, found.response_bytes) == (201, 3, 4096)
    assert (found.first_event_ms, found.ended_ms) == (NOON_MS + 50, NOON_MS + 1000)


counts = st.integers(0, 2**53)
observations = st.builds(
    Observation,
    status=st.sampled_from([0, 100, 200, 204, 299, 300, 400, 404, 429, 500, 503, 504, 599]) | st.integers(0, 999),
    details=st.text()
    | st.sampled_from(
        [
            *("via_upstream", "response_timeout", "max_duration_timeout", "stream_idle_timeout", REMOTE_DISCONNECT),
            *("http2.remote_reset", "ext_proc_error_x", "rbac_access_denied", "spurious_message", f"{AFTER}{{x}}"),
        ]
    ),
    client_gone=st.booleans(),
    passed=st.booleans(),
    input_tokens=st.none() | counts,
    output_tokens=st.none() | counts,
    events=counts,
    response_bytes=counts,
    first_event_ms=st.none() | counts,
    ended_ms=counts,
)


@given(seen=observations, stream=st.booleans())
def test_whatever_is_seen_a_request_ends_in_a_final_state_and_is_never_charged_below_zero(
    seen: Observation, *, stream: bool
) -> None:
    found = read(seen, admission(stream=stream))
    assert found.state in FINAL - {State.REJECTED}
    assert found.input_tokens >= 0
    assert found.output_tokens >= 0
    if seen.input_tokens is not None and seen.output_tokens is not None:
        assert found.usage_source is EXACT
    assert endings.decode(endings.encode(found)) == found


@given(seen=observations)
def test_a_request_that_never_passed_is_not_charged_by_estimate(seen: Observation) -> None:
    if not seen.passed and seen.input_tokens is None and seen.output_tokens is None:
        found = read(seen, admission())
        assert (found.input_tokens, found.output_tokens) == (0, 0)
        assert found.state in {State.FAILED, State.CANCELLED}


@pytest.mark.parametrize(("events", "output"), [(0, 100), (1, 1), (99, 99), (100, 100), (5000, 100)])
def test_a_request_that_nobody_reports_is_charged_for_what_is_known(events: int, output: int) -> None:
    found = lost(admission(), events=events, ended_ms=NOON_MS)
    assert found == Ending(
        state=State.FAILED,
        cause=Cause.GATEWAY_LOST,
        status=0,
        input_tokens=20,
        output_tokens=output,
        usage_source=ESTIMATED,
        events=events,
        response_bytes=0,
        first_event_ms=None,
        ended_ms=NOON_MS,
    )


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b'{"state":"nowhere"}'])
def test_what_is_no_ending_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        endings.decode(text)
