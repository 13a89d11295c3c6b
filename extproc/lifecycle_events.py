"""What is told of each step in a request's life? CloudEvents, made of the same values as the row in the ledger.

CloudEvents 1.0.2, JSON format (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).
An event's `id` is the request's id and its state: whoever is told twice can tell.
"""

from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from extproc.lifecycle import Cause, State
from extproc.record import Admission, Degraded, Ending, UsageSource

SCHEMA_VERSION = 1
DATA_SCHEMA = f"urn:inference-gateway:schema:request-event:{SCHEMA_VERSION}"
_SOURCE = "/inference-gateway/tenants/"
_TYPES = {state: f"inference-gateway.request.{state}.v{SCHEMA_VERSION}" for state in State}
_JSON = "application/json"
_MS = 1000


class RequestData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an event says of its request. Times are milliseconds since the epoch; what is not known yet is left out.

    `cost_micros` are micro-dollars.
    """

    request_id: str
    organization_id: str
    tenant_id: str
    principal_id: str
    path: str
    model: str
    stream: bool
    metering: str
    state: State
    received_ms: int
    admitted_ms: int
    key_id: str = ""
    plan: str = ""
    degraded: Degraded = Degraded.NO
    cause: Cause | None = None
    status: int | None = None
    dispatched_ms: int | None = None
    first_event_ms: int | None = None
    ended_ms: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage_source: UsageSource | None = None
    cost_micros: int | None = None
    events: int | None = None
    response_bytes: int | None = None


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvent of one step. `subject` is the request's id, `time` an RFC 3339 time in UTC."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: RequestData
    specversion: str = "1.0"
    datacontenttype: str = _JSON
    dataschema: str = DATA_SCHEMA


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(RequestEvent)


def admitted(admission: Admission | RequestData) -> RequestEvent:
    """Room was taken for the request."""
    return _event(_data(admission, State.ADMITTED), admission.admitted_ms)


def dispatched(admission: Admission | RequestData, at_ms: int) -> RequestEvent:
    """The Router has the request."""
    return _event(replace(_data(admission, State.DISPATCHED), dispatched_ms=at_ms), at_ms)


def streaming(admission: Admission | RequestData, at_ms: int, *, dispatched_ms: int | None) -> RequestEvent:
    """The answer passes."""
    data = replace(_data(admission, State.STREAMING), dispatched_ms=dispatched_ms, first_event_ms=at_ms)
    return _event(data, at_ms)


def ended(admission: Admission, ending: Ending) -> RequestEvent:
    """The request has ended, and this is its bill."""
    data = replace(
        _data(admission, ending.state),
        cause=ending.cause,
        status=ending.status,
        dispatched_ms=ending.dispatched_ms,
        first_event_ms=ending.first_event_ms,
        ended_ms=ending.ended_ms,
        input_tokens=ending.input_tokens,
        output_tokens=ending.output_tokens,
        cached_tokens=ending.cached_tokens,
        reasoning_tokens=ending.reasoning_tokens,
        usage_source=ending.usage_source,
        cost_micros=ending.charges.cost,
        events=ending.events,
        response_bytes=ending.response_bytes,
    )
    return _event(data, ending.ended_ms)


def life(end: RequestEvent) -> list[RequestEvent]:
    """All events of a request, by its last: those that it had, or would have had if anybody had looked."""
    last = end.data
    events = [admitted(last)]
    if last.dispatched_ms is not None:
        events.append(dispatched(last, last.dispatched_ms))
    if last.first_event_ms is not None:
        events.append(streaming(last, last.first_event_ms, dispatched_ms=last.dispatched_ms))
    return [*events, end]


def encode(event: RequestEvent) -> bytes:
    """The event as JSON."""
    return _ENCODER.encode(event)


def decode(text: bytes) -> RequestEvent:
    """Read an event; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)


def _data(admission: Admission | RequestData, state: State) -> RequestData:
    """What is known since the admission, which every later event says too."""
    return RequestData(
        request_id=admission.request_id,
        organization_id=admission.organization_id,
        tenant_id=admission.tenant_id,
        principal_id=admission.principal_id,
        key_id=admission.key_id,
        plan=admission.plan,
        path=admission.path,
        model=admission.model,
        stream=admission.stream,
        metering=admission.metering,
        degraded=admission.degraded,
        received_ms=admission.received_ms,
        admitted_ms=admission.admitted_ms,
        state=state,
    )


def _event(data: RequestData, at_ms: int) -> RequestEvent:
    return RequestEvent(
        id=f"{data.request_id}/{data.state}",
        source=_SOURCE + data.tenant_id,
        type=_TYPES[data.state],
        subject=data.request_id,
        time=_rfc3339(at_ms),
        data=data,
    )


def _rfc3339(at_ms: int) -> str:
    seconds, milliseconds = divmod(at_ms, _MS)
    return f"{_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
