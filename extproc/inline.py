"""What happens to a response that passes through the sidecar? Follows one response body and answers for each piece."""

from collections.abc import Iterator
from typing import Any

from extproc import wire
from extproc.sse import StreamMeter

_EVENT_STREAM = b"text/event-stream"
_EVERY = 8


class InlineResponse:
    """One response. An event stream is counted and stripped; everything else passes as it is.

    Usage is read by Envoy, before the response comes here, as it is for native metering.
    """

    def __init__(self, *, strip_usage: bool) -> None:
        self._strip_usage = strip_usage
        self._meter: StreamMeter | None = None
        self._marked = 0
        self._bytes = 0

    def headers(self, message: Any) -> bytes:
        """Answer for the response headers."""
        for header in message.response_headers.headers.headers:
            if header.key == "content-type" and header.raw_value.startswith(_EVENT_STREAM):
                self._meter = StreamMeter(strip_usage=self._strip_usage)
        return wire.pass_headers()

    def body(self, message: Any, *, now_ms: int) -> Iterator[bytes]:
        """Answer for a piece of the response body; may take several messages."""
        piece = message.response_body
        passed = piece.body if self._meter is None else self._meter.feed(piece.body)
        self._bytes += len(passed)
        return wire.pass_body(passed, end_of_stream=piece.end_of_stream, progress=self._progress(now_ms))

    def _progress(self, now_ms: int) -> dict[str, int]:
        """Marks as rare as those of meter.lua, and for the same reason."""
        events = self._meter.events if self._meter is not None else 0
        if events == self._marked or (events >= _EVERY and events - self._marked < _EVERY):
            return {}
        first = {} if self._marked else {"first_event_ms": now_ms}
        self._marked = events
        return {"events": events, "bytes": self._bytes, **first}
