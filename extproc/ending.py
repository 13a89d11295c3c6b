"""How did a request end, and what is to be charged? A pure reading of what Envoy's access log says.

The words in `details` are Envoy's own (RESPONSE_CODE_DETAILS, Envoy 1.40); what each end looks like was found by
experiment and is written down in docs/envoy.md.
"""

from dataclasses import dataclass

import msgspec

from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageSource
from quota import estimate

_SUCCESS = range(200, 300)
# An HTTP/1.1 or TLS connection that broke off, or an HTTP/2 stream that the client reset.
_CLIENT_GONE = ("downstream_remote_disconnect", "http2.remote_reset", "downstream_local_disconnect")
_TIMEOUTS = {
    "response_timeout": Cause.UPSTREAM_TIMEOUT,
    "upstream_per_try_timeout": Cause.UPSTREAM_TIMEOUT,
    "stream_idle_timeout": Cause.UPSTREAM_TIMEOUT,
    "max_duration_timeout": Cause.DEADLINE,
}
_NEVER_SENT = ("rbac_access_denied", "ext_proc_error", "spurious_message")
_ANSWERED = "via_upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an access-log entry says. None of `input_tokens` and `output_tokens` means that the Router did not say."""

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


def read(seen: Observation, admission: Admission) -> Ending:
    """The ending of an admitted request."""
    state, cause = _outcome(seen)
    input_tokens, output_tokens, source = _usage(seen, admission, cause)
    return Ending(
        state=state,
        cause=cause,
        status=seen.status,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        usage_source=source,
        events=seen.events,
        response_bytes=seen.response_bytes,
        first_event_ms=seen.first_event_ms,
        ended_ms=seen.ended_ms,
    )


def lost(admission: Admission, *, events: int, ended_ms: int) -> Ending:
    """The ending of a request that nobody reports any more. What it reserved stands for what it used.

    When its progress is known, the events it wrote count instead of the reserved output.
    """
    output = min(events, admission.output_reserved) if events else admission.output_reserved
    return Ending(
        state=State.FAILED,
        cause=Cause.GATEWAY_LOST,
        status=0,
        input_tokens=admission.input_estimate,
        output_tokens=output,
        usage_source=UsageSource.ESTIMATED,
        events=events,
        response_bytes=0,
        first_event_ms=None,
        ended_ms=ended_ms,
    )


def _outcome(seen: Observation) -> tuple[State, Cause]:
    if seen.client_gone or seen.details.startswith(_CLIENT_GONE):
        return State.CANCELLED, Cause.CLIENT_DISCONNECT
    if not seen.passed or seen.details.startswith(_NEVER_SENT):
        return State.FAILED, Cause.GATEWAY_ERROR
    timeout = _TIMEOUTS.get(seen.details)
    if timeout is not None:
        return State.TIMED_OUT, timeout
    if seen.details != _ANSWERED:
        return State.FAILED, Cause.UPSTREAM_RESET
    if seen.status not in _SUCCESS:
        return State.FAILED, Cause.UPSTREAM_ERROR
    return State.COMPLETED, Cause.FINISHED


def _usage(seen: Observation, admission: Admission, cause: Cause) -> tuple[int, int, UsageSource]:
    """Tokens in and out. The Router's own numbers win, zeros too; what it did not say is estimated."""
    # What was admitted without any output, such as embeddings, has none to tell.
    output_said = 0 if seen.output_tokens is None and admission.output_reserved == 0 else seen.output_tokens
    if seen.input_tokens is not None and output_said is not None:
        return seen.input_tokens, output_said, UsageSource.EXACT
    if not seen.passed or cause is Cause.UPSTREAM_ERROR:
        return seen.input_tokens or 0, seen.output_tokens or 0, UsageSource.EXACT
    input_tokens, output_tokens = _estimate(seen, admission, cause)
    return (
        input_tokens if seen.input_tokens is None else seen.input_tokens,
        output_tokens if output_said is None else output_said,
        UsageSource.ESTIMATED,
    )


def _estimate(seen: Observation, admission: Admission, cause: Cause) -> tuple[int, int]:
    if seen.events == 0 and seen.status not in _SUCCESS and cause is not Cause.CLIENT_DISCONNECT:
        return 0, 0  # the Router answered nothing
    # An event carries a token, or more when the Router batches them; a JSON answer is counted by its bytes. A client
    # that left before the answer had asked for it all the same.
    if admission.stream:
        return admission.input_estimate, seen.events
    return admission.input_estimate, estimate.tokens(seen.response_bytes) if seen.response_bytes else 0


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Ending)


def encode(ending: Ending) -> bytes:
    """The ending as it stands in the event stream."""
    return _ENCODER.encode(ending)


def decode(text: bytes) -> Ending:
    """Read an ending; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
