"""What does an entry of Envoy's access log say? The only place of `extproc` that knows its messages."""

from collections.abc import Iterator
from typing import Any

from authz.wire import ARRIVAL_KEY, GRANT_KEY, METADATA_NAMESPACE
from extproc.ending import Observation
from extproc.wire import ADMISSION_NAMESPACE, DETAILS_PREFIX, ROUTER_NAMESPACE, STREAM_NAMESPACE, USAGE_NAMESPACE
from wire.messages import StreamAccessLogsMessage

# envoy.data.accesslog.v3.AccessLogType
_DOWNSTREAM_PERIODIC, _DOWNSTREAM_END = 5, 6
_MAX_NUMBER = 2**53  # beyond it a double skips integers
_MS_PER_SECOND, _NS_PER_MS = 1000, 1_000_000


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
            done=bool(self._text(STREAM_NAMESPACE, "done")),
            failed=bool(self._text(STREAM_NAMESPACE, "failed")),
            stopped=self._text(STREAM_NAMESPACE, "stopped"),
            dispatched_ms=self.dispatched_ms,
            decision=self._text(ROUTER_NAMESPACE, "decision"),
            cost=self._text(ROUTER_NAMESPACE, "cost"),
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

    @property
    def response_bytes(self) -> int:
        """How many bytes of the answer's body have passed."""
        return int(self._entry.response.response_body_bytes)

    @property
    def dispatched_ms(self) -> int | None:
        """When the Router got its first byte of the request, milliseconds since the epoch; None when it has not."""
        return self._moment("time_to_first_upstream_tx_byte")

    @property
    def answered_ms(self) -> int | None:
        """When the answer began to come, milliseconds since the epoch: its first event, or its first byte."""
        first_event_ms = self._number(STREAM_NAMESPACE, "first_event_ms")
        return self._moment("time_to_first_upstream_rx_byte") if first_event_ms is None else first_event_ms

    def _moment(self, name: str) -> int | None:
        """When something was, that is noted as a duration since the start."""
        common = self._common
        if not common.HasField(name):
            return None
        return _milliseconds(common.start_time) + _milliseconds(getattr(common, name))

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
