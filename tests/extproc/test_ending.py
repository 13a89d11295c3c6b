"""How a request ended and what is charged: one row for each end that Envoy 1.40 was seen to report."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import ending as endings
from extproc.actual_cost import micro_dollars
from extproc.ending import Observation, lost, read
from extproc.lifecycle import FINAL, Cause, State
from extproc.record import Ending, UsageSource
from quota.charges import NOTHING, Charges, Rates, TokenUsage, charges
from quota.limit import Unit
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
        ({"status": 504, "details": "response_timeout", **NONE}, TIMED_OUT, Cause.DEADLINE, (0, 0, ESTIMATED)),
        ({"details": "response_timeout"}, TIMED_OUT, Cause.DEADLINE, (20, 12, ESTIMATED)),
        ({"details": "upstream_per_try_timeout"}, TIMED_OUT, Cause.UPSTREAM_TIMEOUT, (20, 12, ESTIMATED)),
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
        # The stream's own end has passed: what follows it changes nothing.
        (
            {"details": REMOTE_DISCONNECT, "client_gone": True, "done": True},
            *(COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
        ),
        ({"details": "http2.remote_reset", "done": True}, COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
        ({"details": f"{AFTER}{{x}}", "done": True}, COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
        ({"details": "stream_idle_timeout", "done": True}, COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
        ({"done": True, "input_tokens": 7, "output_tokens": 30}, COMPLETED, Cause.FINISHED, (7, 30, EXACT)),
        # The Responses API says in the stream that it failed.
        (
            {"done": True, "failed": True, "input_tokens": 7, "output_tokens": 3},
            *(FAILED, Cause.UPSTREAM_ERROR, (7, 3, EXACT)),
        ),
        ({"details": REMOTE_DISCONNECT, "done": True, "failed": True}, FAILED, Cause.UPSTREAM_ERROR, (0, 0, EXACT)),
        # The gateway itself has stopped it: before the answer, in the stream, with a last event of it.
        (
            {"status": 499, "details": "sidecar_client_cancel", "events": 0, "response_bytes": 99},
            *(CANCELLED, Cause.CLIENT_CANCEL, (20, 0, ESTIMATED)),
        ),
        ({"details": "sidecar_admin_cancel"}, CANCELLED, Cause.ADMIN_CANCEL, (20, 12, ESTIMATED)),
        ({"details": "sidecar_revoked"}, CANCELLED, Cause.REVOKED, (20, 12, ESTIMATED)),
        ({"details": "sidecar_output_limit"}, CANCELLED, Cause.OUTPUT_LIMIT, (20, 12, ESTIMATED)),
        ({"stopped": "output_limit"}, CANCELLED, Cause.OUTPUT_LIMIT, (20, 12, ESTIMATED)),
        (
            {"stopped": "client_cancel", "details": REMOTE_DISCONNECT, "client_gone": True},
            *(CANCELLED, Cause.CLIENT_CANCEL, (20, 12, ESTIMATED)),
        ),
        ({"stopped": "client_cancel", "done": True}, CANCELLED, Cause.CLIENT_CANCEL, (20, 12, ESTIMATED)),
        ({"stopped": "nonsense"}, COMPLETED, Cause.FINISHED, (20, 12, ESTIMATED)),
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


def test_an_error_of_ours_is_no_output() -> None:
    seen = observation(status=401, details="sidecar_revoked", events=0, response_bytes=400)
    assert read(seen, admission(stream=False)).output_tokens == 0


def test_what_the_router_said_is_kept_and_its_cost_is_what_counts() -> None:
    seen = observation(
        input_tokens=7, output_tokens=30, decision='{"model": "small"}', cost='{"total_usd": "0.0000011"}'
    )
    found = read(seen, admission(rates=RATES))
    assert (found.routing_snapshot, found.actual_cost) == ('{"model":"small"}', '{"total_usd":"0.0000011"}')
    assert found.charges == msgspec.structs.replace(_used(7, 30), cost=2)


@pytest.mark.parametrize("cost", ["", "no json", "[]", '{"total_usd": -1}', '{"total_usd": "\\u0000"}', "{}"])
def test_a_cost_that_is_none_leaves_the_price_of_the_tokens(cost: str) -> None:
    found = read(observation(input_tokens=7, output_tokens=30, cost=cost), admission())
    assert found.charges == charges(TokenUsage(input=7, output=30), Rates())
    assert found.charges.cost == 70 + 900


def test_what_was_given_back_costs_nothing_whatever_the_router_says() -> None:
    dear = {"cost": '{"total_usd": 5}'}
    assert read(observation(status=500, **NONE, **dear), admission()).charges == NOTHING
    assert read(observation(status=400, **NONE, **dear), admission()).charges == REQUEST
    free = read(observation(cost='{"total_usd": 0}'), admission())
    assert (free.charges.cost, free.charges.tokens) == (0, 32)


def test_when_the_router_got_it_is_kept() -> None:
    assert read(observation(dispatched_ms=NOON_MS + 3), admission()).dispatched_ms == NOON_MS + 3
    assert read(observation(), admission()).dispatched_ms is None


def test_a_stream_that_the_gateway_itself_cut_is_charged_for_what_was_produced() -> None:
    # Metered in line, a dying worker cuts the stream: Envoy reports status 200 and the failed ext_proc stream.
    found = read(observation(details="ext_proc_error_gRPC_error_13{x}"), admission(metering="inline"))
    assert (found.state, found.cause) == (State.FAILED, Cause.GATEWAY_LOST)
    assert (found.input_tokens, found.output_tokens, found.usage_source) == (20, 12, ESTIMATED)
    nothing_passed = observation(details="ext_proc_error_gRPC_error_13{x}", status=503, **NONE)
    assert read(nothing_passed, admission(metering="inline")).cause is Cause.GATEWAY_ERROR


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


# What the limits count: all of it; the request alone; nothing.
RATES = Rates(input_weight=2000, cached_weight=100, output_weight=1000, reasoning_weight=500)
REQUEST = Charges(requests=1)


def _used(input_tokens: int, output_tokens: int) -> Charges:
    return charges(TokenUsage(input=input_tokens, output=output_tokens), RATES)


@pytest.mark.parametrize(
    ("seen", "charged"),
    [
        # All of it: the Router answered, to its end or not.
        ({"input_tokens": 7, "output_tokens": 30}, _used(7, 30)),
        ({"input_tokens": 7, "output_tokens": 0, **NONE}, _used(7, 0)),
        ({}, _used(20, 12)),
        ({"details": f"{AFTER}{{x}}"}, _used(20, 12)),
        ({"details": "response_timeout"}, _used(20, 12)),
        ({"details": "max_duration_timeout"}, _used(20, 12)),
        ({"details": "ext_proc_error_gRPC_error_13{x}"}, _used(20, 12)),
        # The first event is not whole yet, but bytes of it had come.
        ({"details": f"{AFTER}{{x}}", "events": 0, "response_bytes": 9}, _used(20, 0)),
        # What the Router says of output, it has made.
        ({"status": 500, "input_tokens": 7, "output_tokens": 3, **NONE}, _used(7, 3)),
        ({"status": 503, "details": f"{BEFORE}{{x}}", "input_tokens": 7, "output_tokens": 3, **NONE}, _used(7, 3)),
        # The client's own leaving: it had asked for it.
        ({"status": 0, "details": REMOTE_DISCONNECT, "client_gone": True, **NONE}, _used(20, 0)),
        ({"details": REMOTE_DISCONNECT, "client_gone": True}, _used(20, 12)),
        # The caller's own mistake: the request.
        *[({"status": status, **NONE}, REQUEST) for status in (302, 400, 401, 403, 404, 409, 413, 422)],
        ({"status": 400, "input_tokens": 7, **NONE}, REQUEST),
        # The Router's fault, before any output: nothing.
        *[({"status": status, "events": 0, "response_bytes": 99}, NOTHING) for status in (408, 429, 500, 502, 503)],
        ({"status": 500, "input_tokens": 7, **NONE}, NOTHING),
        ({"status": 503, "details": f"{BEFORE}{{x}}", "events": 0, "response_bytes": 207}, NOTHING),
        ({"status": 503, "details": "no_healthy_upstream", **NONE}, NOTHING),
        ({"details": f"{AFTER}{{x}}", **NONE}, NOTHING),
        ({"status": 504, "details": "response_timeout", "events": 0, "response_bytes": 207}, NOTHING),
        ({"status": 504, "details": "stream_idle_timeout", **NONE}, NOTHING),
        ({"details": "max_duration_timeout", **NONE}, NOTHING),
        ({"details": "ext_proc_error_gRPC_error_13{x}", **NONE}, NOTHING),
        # It never reached the Router.
        ({"status": 503, "details": "rbac_access_denied_matched_policy[none]", "passed": False, **NONE}, NOTHING),
        ({"status": 0, "details": REMOTE_DISCONNECT, "client_gone": True, "passed": False, **NONE}, NOTHING),
    ],
)
def test_the_limits_count_what_was_used_and_give_back_what_came_to_nothing(
    seen: dict[str, Any], charged: Charges
) -> None:
    assert read(observation(**seen), admission(rates=RATES)).charges == charged


def test_an_embedding_that_was_served_is_charged_and_one_that_broke_off_in_silence_is_not() -> None:
    embeddings = admission(stream=False, output_reserved=0, rates=RATES)
    served = read(observation(input_tokens=7, events=0), embeddings)
    assert served.charges == _used(7, 0)
    broken = read(observation(status=503, details=f"{BEFORE}{{x}}", **NONE), embeddings)
    assert broken.charges == NOTHING


def test_cached_and_reasoning_tokens_are_parts_with_weights_of_their_own() -> None:
    seen = observation(input_tokens=100, cached_tokens=60, output_tokens=50, reasoning_tokens=20)
    found = read(seen, admission(rates=RATES))
    assert (found.input_tokens, found.cached_tokens, found.output_tokens, found.reasoning_tokens) == (100, 60, 50, 20)
    assert (found.charges.input_tokens, found.charges.output_tokens) == (40 * 2 + 6, 30 + 10)


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ({"input_tokens": 7, "cached_tokens": 9, "output_tokens": 3, "reasoning_tokens": 8}, (7, 7, 3, 3, EXACT)),
        ({"input_tokens": 7, "output_tokens": 3}, (7, 0, 3, 0, EXACT)),
        ({"input_tokens": 0, "cached_tokens": 9, "output_tokens": 0, "reasoning_tokens": 8}, (0, 0, 0, 0, EXACT)),
        # A part that was said is known of a whole that was not.
        ({"cached_tokens": 50, "reasoning_tokens": 40}, (50, 50, 40, 40, ESTIMATED)),
        ({"cached_tokens": 5, "reasoning_tokens": 4}, (20, 5, 12, 4, ESTIMATED)),
        ({"cached_tokens": 0, "reasoning_tokens": 0}, (20, 0, 12, 0, ESTIMATED)),
    ],
)
def test_a_part_is_never_more_than_its_whole(
    seen: dict[str, Any], found: tuple[int, int, int, int, UsageSource]
) -> None:
    ending = read(observation(**seen), admission())
    assert (
        *(ending.input_tokens, ending.cached_tokens, ending.output_tokens, ending.reasoning_tokens),
        ending.usage_source,
    ) == found


def test_a_number_that_no_request_has_is_none() -> None:
    found = read(observation(input_tokens=10**9 + 1, output_tokens=10**15, cached_tokens=10**12), admission())
    assert (found.input_tokens, found.output_tokens, found.cached_tokens) == (20, 12, 0)
    assert found.usage_source is ESTIMATED


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
    cached_tokens=st.none() | counts,
    reasoning_tokens=st.none() | counts,
    done=st.booleans(),
    failed=st.booleans(),
    stopped=st.sampled_from(["", "revoked", "client_cancel", "x"]),
    dispatched_ms=st.none() | counts,
    cost=st.sampled_from(["", "{}", '{"total_usd": 0}', '{"total_usd": 1000000}', "["]) | st.text(),
    decision=st.text(),
)
weights, prices = st.integers(0, 2**31 - 1), st.integers(0, 10**12)
rates = st.builds(
    Rates,
    **dict.fromkeys(("input_weight", "cached_weight", "output_weight", "reasoning_weight"), weights),
    **dict.fromkeys(("input_price", "cached_price", "output_price", "reasoning_price"), prices),
)


@given(seen=observations, stream=st.booleans())
def test_whatever_is_seen_a_request_ends_in_a_final_state_and_is_never_charged_below_zero(
    seen: Observation, *, stream: bool
) -> None:
    found = read(seen, admission(stream=stream))
    assert found.state in FINAL - {State.REJECTED}
    assert found.input_tokens >= 0
    assert found.output_tokens >= 0
    if (seen.input_tokens or 0) > 10**9 or (seen.output_tokens or 0) > 10**9:
        assert max(found.input_tokens, found.output_tokens) <= 10**9
    elif seen.input_tokens is not None and seen.output_tokens is not None:
        assert found.usage_source is EXACT
    assert endings.decode(endings.encode(found)) == found


@given(seen=observations, stream=st.booleans(), rated=rates)
def test_whatever_is_seen_counts_in_full_or_as_a_request_or_not_at_all(
    seen: Observation, *, stream: bool, rated: Rates
) -> None:
    found = read(seen, admission(stream=stream, rates=rated))
    usage = TokenUsage(
        input=found.input_tokens,
        output=found.output_tokens,
        cached=found.cached_tokens,
        reasoning=found.reasoning_tokens,
    )
    assert found.cached_tokens <= found.input_tokens
    assert found.reasoning_tokens <= found.output_tokens
    whole = charges(usage, rated)
    if (actual := micro_dollars(found.actual_cost)) is not None:
        whole = msgspec.structs.replace(whole, cost=actual)
    assert found.charges in (whole, REQUEST, NOTHING)
    if found.state in {State.COMPLETED, State.CANCELLED} and seen.passed:
        assert found.charges == whole
    if found.output_tokens and seen.passed:
        assert found.charges == whole
    # What counters in Redis add up are doubles there.
    assert all(0 <= found.charges.of(unit) < 2**53 for unit in Unit)


@given(seen=observations)
def test_a_request_that_never_passed_is_not_charged_by_estimate(seen: Observation) -> None:
    if not seen.passed and seen.input_tokens is None and seen.output_tokens is None:
        found = read(seen, admission())
        assert (found.input_tokens, found.output_tokens) == (0, 0)
        assert found.state in {State.FAILED, State.CANCELLED}
        assert found.charges == NOTHING


@pytest.mark.parametrize(("events", "output"), [(0, 100), (1, 1), (99, 99), (100, 100), (5000, 100)])
def test_a_request_that_nobody_reports_is_charged_for_what_is_known(events: int, output: int) -> None:
    found = lost(admission(rates=RATES), events=events, ended_ms=NOON_MS)
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
        charges=charges(TokenUsage(input=20, output=output), RATES),
    )


@pytest.mark.parametrize("text", [b"", b"{}", b"null", b'{"state":"nowhere"}'])
def test_what_is_no_ending_is_said_to_be_none(text: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        endings.decode(text)
