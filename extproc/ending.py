"""How did a request end, and what is to be charged? A pure reading of what Envoy's access log says.

The words in `details` are Envoy's own (RESPONSE_CODE_DETAILS, Envoy 1.40); what each end looks like was found by
experiment and is written down in docs/envoy.md.
"""

import msgspec

from extproc.actual_cost import micro_dollars
from extproc.lifecycle import STOPPING, Cause, State
from extproc.record import Admission, Ending, UsageSource
from extproc.router_word import json_object
from quota import estimate
from quota.charges import NOTHING, Charges, TokenUsage, charges

_SUCCESS = range(200, 300)
# The Router did not do what it was asked to, and it is not the caller's fault (RFC 9110 section 15.5.9, RFC 6585
# section 4). Every other 4xx is its answer to the caller's own mistake.
_SERVER_ERRORS = range(500, 600)
_NOT_THE_CALLERS_FAULT = (408, 429)
# An HTTP/1.1 or TLS connection that broke off, or an HTTP/2 stream that the client reset.
_CLIENT_GONE = ("downstream_remote_disconnect", "http2.remote_reset", "downstream_local_disconnect")
_TIMEOUTS = {
    # Of x-envoy-upstream-rq-timeout-ms, which Check sends for a plan with a deadline: the routes have no other.
    "response_timeout": Cause.DEADLINE,
    "upstream_per_try_timeout": Cause.UPSTREAM_TIMEOUT,
    "stream_idle_timeout": Cause.UPSTREAM_TIMEOUT,
    "max_duration_timeout": Cause.DEADLINE,
}
# What the gateway stopped by itself; the same in metadata, when it ended the stream with an event.
_STOPPED = "sidecar_"
_NEVER_SENT = ("rbac_access_denied", "ext_proc_error", "spurious_message")
_ANSWERED = "via_upstream"
_BROKEN_OFF = frozenset({Cause.UPSTREAM_RESET, Cause.UPSTREAM_TIMEOUT, Cause.DEADLINE, Cause.GATEWAY_ERROR})
# More than any request has. What counters add up must stay below 2^53, whatever a Router says.
_MOST_TOKENS = 1_000_000_000


class Observation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What an access-log entry says. None of tokens means that the Router did not say.

    `input_tokens` are all, `cached_tokens` of them read from a cache; so with the output and `reasoning_tokens`. `done`
    says that a stream's own end has passed, `failed` that it told of a failure, `stopped` why the gateway ended it, if
    it did. `dispatched_ms` is when the Router got the request. `decision` and `cost` are its words, as it said them.
    """

    status: int
    details: str
    client_gone: bool
    passed: bool
    input_tokens: int | None
    output_tokens: int | None
    events: int
    response_bytes: int
    first_event_ms: int | None
    ended_ms: int
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    done: bool = False
    failed: bool = False
    stopped: str = ""
    dispatched_ms: int | None = None
    decision: str = ""
    cost: str = ""


def read(seen: Observation, admission: Admission) -> Ending:
    """The ending of an admitted request."""
    state, cause = _outcome(seen)
    usage, source = _usage(seen, admission, cause)
    actual_cost = json_object(seen.cost)
    return Ending(
        state=state,
        cause=cause,
        status=seen.status,
        input_tokens=usage.input,
        output_tokens=usage.output,
        usage_source=source,
        events=seen.events,
        response_bytes=seen.response_bytes,
        first_event_ms=seen.first_event_ms,
        ended_ms=seen.ended_ms,
        cached_tokens=usage.cached,
        reasoning_tokens=usage.reasoning,
        charges=_charges(seen, cause, _priced(usage, admission, seen.cost if actual_cost else "")),
        dispatched_ms=seen.dispatched_ms,
        routing_snapshot=json_object(seen.decision),
        actual_cost=actual_cost,
    )


def lost(admission: Admission, *, events: int, ended_ms: int, cause: Cause | None = None) -> Ending:
    """The ending of a request that nobody reports any more. What it reserved stands for what it used.

    When its progress is known, the events it wrote count instead of the reserved output. `cause` is why the gateway
    itself stopped it, if it did.
    """
    output = min(events, admission.output_reserved) if events else admission.output_reserved
    usage = TokenUsage(input=admission.input_estimate, output=output)
    return Ending(
        state=State.CANCELLED if cause in STOPPING else State.FAILED,
        cause=cause if cause in STOPPING else Cause.GATEWAY_LOST,
        status=0,
        input_tokens=usage.input,
        output_tokens=usage.output,
        usage_source=UsageSource.ESTIMATED,
        events=events,
        response_bytes=0,
        first_event_ms=None,
        ended_ms=ended_ms,
        charges=charges(usage, admission.rates),
    )


def _outcome(seen: Observation) -> tuple[State, Cause]:
    stopped = seen.stopped or seen.details.removeprefix(_STOPPED)
    if stopped in STOPPING:
        return State.CANCELLED, Cause(stopped)
    # Whoever has the whole stream may leave, before Envoy has seen the Router's connection end.
    if seen.done and seen.passed:
        return (State.FAILED, Cause.UPSTREAM_ERROR) if seen.failed else (State.COMPLETED, Cause.FINISHED)
    if seen.client_gone or seen.details.startswith(_CLIENT_GONE):
        return State.CANCELLED, Cause.CLIENT_DISCONNECT
    return _without_the_client(seen)


def _without_the_client(seen: Observation) -> tuple[State, Cause]:
    if not seen.passed or seen.details.startswith(_NEVER_SENT):
        # In line, a worker that dies takes along the answer that passes through it.
        return State.FAILED, Cause.GATEWAY_ERROR if not seen.passed or _is_silent(seen) else Cause.GATEWAY_LOST
    timeout = _TIMEOUTS.get(seen.details)
    if timeout is not None:
        return State.TIMED_OUT, timeout
    if seen.details != _ANSWERED:
        return State.FAILED, Cause.UPSTREAM_RESET
    if seen.status not in _SUCCESS:
        return State.FAILED, Cause.UPSTREAM_ERROR
    return State.COMPLETED, Cause.FINISHED


def _usage(seen: Observation, admission: Admission, cause: Cause) -> tuple[TokenUsage, UsageSource]:
    """Tokens in and out. The Router's own numbers win, zeros too; what it did not say is estimated."""
    said_input, said_output = _said(seen.input_tokens), _said(seen.output_tokens)
    # What was admitted without any output, such as embeddings, has none to tell.
    if said_output is None and admission.output_reserved == 0:
        said_output = 0
    if said_input is not None and said_output is not None:
        return _told(seen, said_input, said_output), UsageSource.EXACT
    if not seen.passed or cause is Cause.UPSTREAM_ERROR:
        return _told(seen, said_input or 0, said_output or 0), UsageSource.EXACT
    input_tokens, output_tokens = _estimate(seen, admission, cause)
    # A part that was said is known of a whole that was not.
    whole_input = max(input_tokens, _said(seen.cached_tokens) or 0) if said_input is None else said_input
    whole_output = max(output_tokens, _said(seen.reasoning_tokens) or 0) if said_output is None else said_output
    return _told(seen, whole_input, whole_output), UsageSource.ESTIMATED


def _told(seen: Observation, input_tokens: int, output_tokens: int) -> TokenUsage:
    """The usage, with the parts of it that the Router has told apart: no more than the whole, whatever it says."""
    return TokenUsage(
        input=input_tokens,
        output=output_tokens,
        cached=min(_said(seen.cached_tokens) or 0, input_tokens),
        reasoning=min(_said(seen.reasoning_tokens) or 0, output_tokens),
    )


def _said(tokens: int | None) -> int | None:
    return tokens if tokens is None or tokens <= _MOST_TOKENS else None


def _estimate(seen: Observation, admission: Admission, cause: Cause) -> tuple[int, int]:
    if cause in _BROKEN_OFF and _is_silent(seen):
        return 0, 0  # the Router answered nothing
    # An event carries a token, or more when the Router batches them; a JSON answer is counted by its bytes. A client
    # that left before the answer had asked for it all the same.
    if admission.stream:
        return admission.input_estimate, min(seen.events, _MOST_TOKENS)
    # With another status than 2xx, the bytes are those of an error.
    output = estimate.tokens(seen.response_bytes) if seen.response_bytes and seen.status in _SUCCESS else 0
    return admission.input_estimate, min(output, _MOST_TOKENS)


def _priced(usage: TokenUsage, admission: Admission, cost: str) -> tuple[TokenUsage, Charges]:
    """The usage, and what it counts for: money is what the Router says that it cost, else the price of the tokens."""
    whole = charges(usage, admission.rates)
    actual = micro_dollars(cost)
    return usage, whole if actual is None else msgspec.structs.replace(whole, cost=actual)


def _charges(seen: Observation, cause: Cause, used: tuple[TokenUsage, Charges]) -> Charges:
    """What the limits count: all that was used, or nothing when nothing came of it through no fault of the caller's."""
    usage, whole = used
    if not seen.passed:
        return NOTHING
    if cause is Cause.UPSTREAM_ERROR and not usage.output:
        # A request that is wrong stays counted: else a client could press wrong bodies on the Router past its limit.
        return NOTHING if _is_the_routers_fault(seen.status) else Charges(requests=1)
    if cause in _BROKEN_OFF and not usage.output and _is_silent(seen):
        return NOTHING
    return whole


def _is_the_routers_fault(status: int) -> bool:
    return status in _SERVER_ERRORS or status in _NOT_THE_CALLERS_FAULT


def _is_silent(seen: Observation) -> bool:
    """Whether nothing of an answer had come. With another status than 2xx, the bytes are Envoy's own reply."""
    return seen.events == 0 and (seen.status not in _SUCCESS or seen.response_bytes == 0)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Ending)


def encode(ending: Ending) -> bytes:
    """The ending as it stands in the event stream."""
    return _ENCODER.encode(ending)


def decode(text: bytes) -> Ending:
    """Read an ending; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
