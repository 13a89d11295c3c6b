"""How do the messages of ext_proc and the access log become our values, and back?

The only place of `extproc` that knows them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from authz import error_body
from authz.refusal import Refusal
from authz.routes import Dialect
from authz.wire import ARRIVAL_KEY, GRANT_KEY, METADATA_NAMESPACE
from extproc.ending import Observation
from wire.messages import ProcessingRequest, ProcessingResponse, StreamAccessLogsMessage

ADMISSION_NAMESPACE = "gateway.admission"
USAGE_NAMESPACE = "gateway.usage"
STREAM_NAMESPACE = "gateway.stream"

# Of the admission: the headers that the answer gets, for Envoy puts them there (envoy/envoy.yaml).
_TOLD = "told"
# Envoy's local replies are rewritten by local_reply_config, except those whose details begin so.
DETAILS_PREFIX = "sidecar_"
# envoy.data.accesslog.v3.AccessLogType
_DOWNSTREAM_PERIODIC, _DOWNSTREAM_END = 5, 6
# Envoy refuses a longer chunk of a streamed response.
_MAX_CHUNK = 65_536
_MAX_NUMBER = 2**53  # beyond it a double skips integers
_MS_PER_SECOND, _NS_PER_MS = 1000, 1_000_000


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
    response = ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.code = refusal.reason.status
    for name, value in error_body.headers(refusal):
        header = immediate.headers.set_headers.add().header
        header.key = name
        # ext_proc reads `raw_value`; `value` would give an empty header (ext_authz is the opposite).
        header.raw_value = value.encode()
    immediate.body = error_body.render(refusal, dialect=dialect, request_id=request_id, now=now)
    immediate.details = DETAILS_PREFIX + refusal.reason.code
    return bytes(response.SerializeToString())


def pass_headers() -> bytes:
    """Leave the response headers as they are. What they told has done its work, and need not fill the access log."""
    return _PASS_HEADERS


def _headers_passed() -> bytes:
    response = ProcessingResponse()
    response.response_headers.response.SetInParent()
    admission = response.dynamic_metadata.fields[ADMISSION_NAMESPACE].struct_value
    admission.fields[_TOLD].string_value = ""
    return bytes(response.SerializeToString())


_PASS_HEADERS = _headers_passed()


def pass_trailers() -> bytes:
    """Leave the response trailers as they are."""
    response = ProcessingResponse()
    response.response_trailers.SetInParent()
    return bytes(response.SerializeToString())


def pass_body(body: bytes, *, end_of_stream: bool, progress: dict[str, int]) -> Iterator[bytes]:
    """Pass a piece of a streamed response on, and note its progress where the access log finds it."""
    pieces = [body[at : at + _MAX_CHUNK] for at in range(0, len(body), _MAX_CHUNK)] or [b""]
    for at, piece in enumerate(pieces):
        response = ProcessingResponse()
        streamed = response.response_body.response.body_mutation.streamed_response
        streamed.body = piece
        streamed.end_of_stream = end_of_stream and at == len(pieces) - 1
        if progress:
            fields = response.dynamic_metadata.fields[STREAM_NAMESPACE].struct_value.fields
            for name, number in progress.items():
                fields[name].number_value = number
        yield bytes(response.SerializeToString())


class LogEntry:
    """One access-log entry of a request, read as far as it is asked."""

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        self._common = entry.common_properties
        self._metadata = entry.common_properties.metadata.filter_metadata

    @property
    def is_end(self) -> bool:
        """Whether the request has ended."""
        return bool(self._common.access_log_type == _DOWNSTREAM_END)

    @property
    def is_alive(self) -> bool:
        """Whether this is a periodic entry of a request that runs."""
        return bool(self._common.access_log_type == _DOWNSTREAM_PERIODIC)

    @property
    def record(self) -> str:
        """The record of the admission; empty when the request was not admitted."""
        return self._text(ADMISSION_NAMESPACE, "record")

    @property
    def grant_and_arrival(self) -> tuple[str, str]:
        """What Check left beside the request, as text; empty when it did not run or refused."""
        return self._text(METADATA_NAMESPACE, GRANT_KEY), self._text(METADATA_NAMESPACE, ARRIVAL_KEY)

    @property
    def is_refusal(self) -> bool:
        """Whether ext_proc itself refused the request."""
        return bool(self._entry.response.response_code_details.startswith(DETAILS_PREFIX))

    @property
    def events(self) -> int:
        """How many events of the stream have passed.

        They are marked now and then, with the bytes up to there; what has passed since is as dense.
        """
        marked, marked_bytes = self._number(STREAM_NAMESPACE, "events"), self._number(STREAM_NAMESPACE, "bytes")
        if not marked or not marked_bytes:
            return 0
        passed_bytes = int(self._entry.response.response_body_bytes)
        return max(marked, round(marked * passed_bytes / marked_bytes))

    def observation(self) -> Observation:
        """What the entry says of the request's end."""
        common, response = self._common, self._entry.response
        flags = common.response_flags
        input_tokens, cached_tokens = self._input()
        return Observation(
            status=response.response_code.value,
            details=response.response_code_details,
            client_gone=flags.downstream_connection_termination or flags.downstream_remote_reset,
            passed=bool(self.record),
            input_tokens=input_tokens,
            output_tokens=self._number(USAGE_NAMESPACE, "output"),
            events=self.events,
            response_bytes=response.response_body_bytes,
            first_event_ms=self._number(STREAM_NAMESPACE, "first_event_ms"),
            ended_ms=_milliseconds(common.start_time) + _milliseconds(common.duration),
            cached_tokens=cached_tokens,
            reasoning_tokens=self._number(USAGE_NAMESPACE, "reasoning"),
        )

    @property
    def first_byte_ms(self) -> int | None:
        """How long the Router took for the first byte of its answer, once it had the request; None without one."""
        common = self._common
        if not (common.HasField("time_to_first_upstream_rx_byte") and common.HasField("time_to_last_upstream_tx_byte")):
            return None
        received, sent = common.time_to_first_upstream_rx_byte, common.time_to_last_upstream_tx_byte
        took = (received.seconds - sent.seconds) * _MS_PER_SECOND + (received.nanos - sent.nanos) // _NS_PER_MS
        return max(0, int(took))  # below, it answered before it had the whole body

    def _input(self) -> tuple[int | None, int | None]:
        """All tokens in, and those of them that were read from a cache.

        OpenAI's prompt_tokens and the input_tokens of its later APIs are all. Anthropic's input_tokens are what is
        left beside cache_read_input_tokens and cache_creation_input_tokens. A Router that says prompt_tokens and the
        latter two, as some do, has them in the former.
        """
        cached = self._number(USAGE_NAMESPACE, "cached")
        read, written = self._number(USAGE_NAMESPACE, "cache_read"), self._number(USAGE_NAMESPACE, "cache_written")
        cached = read if cached is None else cached
        prompt = self._number(USAGE_NAMESPACE, "prompt")
        if prompt is not None:
            return prompt, cached
        rest = self._number(USAGE_NAMESPACE, "input")
        if rest is None:
            return None, cached
        whole = rest + (read or 0) + (written or 0)
        return (whole if whole < _MAX_NUMBER else None), cached

    def _text(self, namespace: str, key: str) -> str:
        if namespace not in self._metadata:
            return ""
        return str(self._metadata[namespace].fields[key].string_value)

    def _number(self, namespace: str, key: str) -> int | None:
        if namespace not in self._metadata:
            return None
        fields = self._metadata[namespace].fields
        if key not in fields or not fields[key].HasField("number_value"):
            return None
        # A Router's number may be anything that JSON allows; a negative or an absurd one is none.
        number = fields[key].number_value
        return int(number) if 0 <= number < _MAX_NUMBER else None


def log_entries(raw: bytes) -> Iterator[LogEntry]:
    """The HTTP entries of a StreamAccessLogsMessage."""
    for entry in StreamAccessLogsMessage.FromString(raw).http_logs.log_entry:
        yield LogEntry(entry)


def _milliseconds(time: Any) -> int:
    return int(time.seconds * _MS_PER_SECOND + time.nanos // _NS_PER_MS)
