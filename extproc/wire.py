"""How do the messages of ext_proc become our values, and back? The only place of `extproc` that knows them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from authz import error_body
from authz.refusal import Refusal
from authz.routes import Dialect
from authz.wire import ARRIVAL_KEY, GRANT_KEY, METADATA_NAMESPACE
from extproc import stop as stops
from extproc.idempotency import Replay
from extproc.lifecycle import Cause
from wire.messages import ProcessingRequest, ProcessingResponse

ADMISSION_NAMESPACE = "gateway.admission"
USAGE_NAMESPACE = "gateway.usage"
STREAM_NAMESPACE = "gateway.stream"
ROUTER_NAMESPACE = "gateway.router"
CODING_NAMESPACE = "gateway.coding"

# Of the admission: the headers that the answer gets, for Envoy puts them there (envoy/envoy.yaml).
_TOLD = "told"
# Envoy's local replies are rewritten by local_reply_config, except those whose details begin so.
DETAILS_PREFIX = "sidecar_"
_REPLAY = "idempotent_replay"
# envoy.extensions.filters.http.ext_proc.v3.ProcessingMode: BodySendMode, and HeaderSendMode
_STREAMED, _BUFFERED, _FULL_DUPLEX_STREAMED, _SEND = 1, 2, 4, 1
# Envoy refuses a longer chunk of a streamed response.
_MAX_CHUNK = 65_536
_NOTHING: Mapping[str, Any] = {}


class Phase:
    """The fields of ProcessingRequest's `request` oneof that Envoy is configured to send."""

    REQUEST_BODY = "request_body"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"


def read(raw: bytes) -> tuple[str | None, Any]:
    """The phase of a ProcessingRequest, and the message."""
    message = ProcessingRequest.FromString(raw)
    return message.WhichOneof("request"), message


def grant_and_arrival(message: Any) -> tuple[str, str]:
    """What Check left beside the request, as text; empty when ext_authz did not run."""
    fields = message.metadata_context.filter_metadata[METADATA_NAMESPACE].fields
    return fields[GRANT_KEY].string_value, fields[ARRIVAL_KEY].string_value


def let_pass(*, record: str, body: bytes | None, strip_usage: bool, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Admit the request: rbac lets pass what carries this mark, the access log brings the record back.

    `headers` go on the answer, whoever gives it.
    """
    response = ProcessingResponse()
    common = response.request_body.response
    common.SetInParent()
    if body is not None:
        common.body_mutation.body = body
    metadata = response.dynamic_metadata.fields
    # The record says all that the end must know; entries that wait for a listener should be small.
    for key in (GRANT_KEY, ARRIVAL_KEY):
        metadata[METADATA_NAMESPACE].struct_value.fields[key].string_value = ""
    fields = metadata[ADMISSION_NAMESPACE].struct_value.fields
    fields["admitted"].string_value = "yes"
    fields["record"].string_value = record
    if strip_usage:
        fields["strip_usage"].string_value = "yes"
    if headers:
        told = fields[_TOLD].struct_value.fields
        for name, value in headers:
            told[name].string_value = value
    return bytes(response.SerializeToString())


def refuse(refusal: Refusal, *, dialect: Dialect, request_id: str, now: float) -> bytes:
    """Answer the request with our error body."""
    body = error_body.render(refusal, dialect=dialect, request_id=request_id, now=now)
    return _immediate(refusal.reason.status, error_body.headers(refusal), body, details=refusal.reason.code)


def replay(found: Replay) -> bytes:
    """Answer the request with what an earlier one was answered."""
    headers = [
        ("content-type", found.answer.content_type),
        ("idempotent-replayed", "true"),
        ("x-gateway-original-request-id", found.request_id),
    ]
    return _immediate(found.answer.status, headers, found.answer.body, details=_REPLAY)


def stop(cause: Cause, *, dialect: Dialect, request_id: str, now: float) -> bytes:
    """End a request that runs, unasked. Before its answer's headers the client gets our error body.

    After them Envoy resets it. The cause, one of `lifecycle.STOPPING`, comes back with the access log.
    """
    refusal = stops.refusal(cause)
    body = error_body.render(refusal, dialect=dialect, request_id=request_id, now=now)
    return _immediate(refusal.reason.status, error_body.headers(refusal), body, details=cause.value)


def _immediate(status: int, headers: Iterable[tuple[str, str]], body: bytes, *, details: str) -> bytes:
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = status
    for name, value in headers:
        header = immediate.headers.set_headers.add().header
        header.key = name
        # ext_proc reads `raw_value`; `value` would give an empty header (ext_authz is the opposite).
        header.raw_value = value.encode()
    immediate.body = body
    immediate.details = DETAILS_PREFIX + details
    return bytes(response.SerializeToString())


def take_body() -> bytes:
    """Leave the response headers as they are, and take the body: the client gets what is given back of it."""
    return _TAKE_BODY


def leave_body() -> bytes:
    """Leave the response headers as they are, and the body with Envoy.

    It may be a stream that meter.lua reads by now: when that changes a chunk, Envoy's Lua filter takes its length for
    that of the content, and says so in the headers that wait for this answer. So they lose their length here.
    """
    return _LEAVE_BODY


def show_body() -> bytes:
    """Leave the response headers as they are, and show the body, which is not shown by configuration.

    STREAMED lets it run on when the sidecar dies; FULL_DUPLEX_STREAMED would cut it.
    """
    return _SHOW_BODY


def pass_piece() -> bytes:
    """Leave a piece of a body that is shown as it is."""
    return _PASS_PIECE


def is_coded(message: Any) -> bool:
    """Whether the Router had compressed the response whose headers these are; Envoy has unpacked it."""
    return CODING_NAMESPACE in message.metadata_context.filter_metadata


def response_head(message: Any) -> tuple[int, dict[str, str]]:
    """The status of a response, and its headers."""
    headers = {header.key: header.raw_value.decode("latin-1") for header in message.response_headers.headers.headers}
    return int(headers.get(":status", 0)), headers


def _headers_passed(*, body_mode: int | None = None, drops_length: bool = False) -> bytes:
    response = ProcessingResponse()
    response.response_headers.response.SetInParent()
    if drops_length:
        response.response_headers.response.header_mutation.remove_headers.append("content-length")
    admission = response.dynamic_metadata.fields[ADMISSION_NAMESPACE].struct_value
    admission.fields[_TOLD].string_value = ""
    if body_mode is not None:
        # Merged with the configuration field by field, but bodies always count as said.
        override = response.mode_override
        override.request_body_mode = _BUFFERED
        override.response_body_mode = body_mode
        override.response_trailer_mode = _SEND
    return bytes(response.SerializeToString())


def _piece_passed() -> bytes:
    response = ProcessingResponse()
    response.response_body.response.SetInParent()
    return bytes(response.SerializeToString())


_TAKE_BODY = _headers_passed(body_mode=_FULL_DUPLEX_STREAMED)
_LEAVE_BODY = _headers_passed(drops_length=True)
_SHOW_BODY = _headers_passed(body_mode=_STREAMED)
_PASS_PIECE = _piece_passed()


def pass_trailers() -> bytes:
    """Leave the response trailers as they are."""
    response = ProcessingResponse()
    response.response_trailers.SetInParent()
    return bytes(response.SerializeToString())


def pass_body(
    body: bytes,
    *,
    end_of_stream: bool,
    progress: Mapping[str, int | str] = _NOTHING,
    words: Mapping[str, str] = _NOTHING,
) -> Iterator[bytes]:
    """Pass a piece of a streamed response on, and note its progress and the Router's words for the access log."""
    pieces = [body[at : at + _MAX_CHUNK] for at in range(0, len(body), _MAX_CHUNK)] or [b""]
    for at, piece in enumerate(pieces):
        response = ProcessingResponse()
        streamed = response.response_body.response.body_mutation.streamed_response
        streamed.body = piece
        streamed.end_of_stream = end_of_stream and at == len(pieces) - 1
        if at == 0:
            _note(response, STREAM_NAMESPACE, progress)
            _note(response, ROUTER_NAMESPACE, words)
        yield bytes(response.SerializeToString())


def _note(response: Any, namespace: str, noted: Mapping[str, int | str]) -> None:
    if not noted:
        return
    fields = response.dynamic_metadata.fields[namespace].struct_value.fields
    for name, value in noted.items():
        if isinstance(value, str):
            fields[name].string_value = value
        else:
            fields[name].number_value = value
