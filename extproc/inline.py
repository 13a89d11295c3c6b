"""How is a response metered that passes through the sidecar? Follows one response body, JSON or events."""

from collections.abc import Iterator
from typing import Any, Protocol

import msgspec

from extproc import wire
from extproc.sse import StreamMeter, read_usage

_EVENT_STREAM = b"text/event-stream"
_MAX_JSON = 8 * 1024 * 1024


class InlineResponse:
    """Meters one response, chunk by chunk, and answers Envoy for each."""

    def __init__(self, *, strip_usage: bool) -> None:
        self._strip = strip_usage
        self._meter: _Meter = _JsonMeter()
        self._first_event_ms: int | None = None

    def headers(self, message: Any) -> bytes:
        """Answer for the response headers."""
        for header in message.response_headers.headers.headers:
            if header.key == "content-type" and header.raw_value.startswith(_EVENT_STREAM):
                self._meter = _EventMeter(strip_usage=self._strip)
        return wire.pass_headers()

    def body(self, message: Any, *, now_ms: int) -> Iterator[bytes]:
        """Answer for a piece of the response body; may take several messages."""
        piece = message.response_body
        passed = self._meter.feed(piece.body, end=piece.end_of_stream)
        return wire.pass_body(passed, end_of_stream=piece.end_of_stream, progress=self._progress(now_ms))

    def _progress(self, now_ms: int) -> dict[str, dict[str, int]]:
        progress = {}
        usage = {
            name: number
            for name, number in (("input", self._meter.input_tokens), ("output", self._meter.output_tokens))
            if number is not None
        }
        if usage:
            progress[wire.USAGE_NAMESPACE] = usage
        if self._meter.events:
            self._first_event_ms = self._first_event_ms or now_ms
            progress[wire.STREAM_NAMESPACE] = {
                "events": self._meter.events,
                "first_event_ms": self._first_event_ms,
            }
        return progress


class _Meter(Protocol):
    @property
    def events(self) -> int: ...
    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    def feed(self, chunk: bytes, *, end: bool) -> bytes: ...


class _EventMeter:
    def __init__(self, *, strip_usage: bool) -> None:
        self._stream = StreamMeter(strip_usage=strip_usage)

    @property
    def events(self) -> int:
        return self._stream.events

    @property
    def input_tokens(self) -> int | None:
        return self._stream.input_tokens

    @property
    def output_tokens(self) -> int | None:
        return self._stream.output_tokens

    def feed(self, chunk: bytes, *, end: bool) -> bytes:
        del end
        return self._stream.feed(chunk)


class _JsonMeter:
    """Keeps a copy of the body, up to a bound, and reads its usage when it is whole."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.events = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    def feed(self, chunk: bytes, *, end: bool) -> bytes:
        self._size += len(chunk)
        if self._size <= _MAX_JSON:
            self._pieces.append(chunk)
            if end:
                self._read()
        return chunk

    def _read(self) -> None:
        try:
            found = msgspec.json.decode(b"".join(self._pieces))
        except msgspec.DecodeError:
            return
        usage = read_usage(found.get("usage")) if isinstance(found, dict) else None
        if usage is not None:
            self.input_tokens, self.output_tokens = usage
