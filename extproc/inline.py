"""What happens to a response that passes through the sidecar? Follows one response body and answers for each piece."""

from collections.abc import Iterator
from typing import Any

from authz.caps import NO_CAPS, Caps
from authz.routes import Dialect
from extproc import stop, wire
from extproc.lifecycle import Cause
from extproc.output_cap import exceeds
from extproc.sse import StreamMeter

_EVENT_STREAM = b"text/event-stream"
_EVERY = 8
_MS_PER_SECOND = 1000


class InlineResponse:
    """One response. An event stream is counted and stripped; everything else passes as it is.

    Usage is read by Envoy, before the response comes here, as it is for native metering. `dialect` and `request_id` are
    for the error that ends what has passed its `caps`, or is stopped.
    """

    def __init__(
        self,
        *,
        strip_usage: bool,
        caps: Caps = NO_CAPS,
        dialect: Dialect = Dialect.PLAIN,
        request_id: str = "",
    ) -> None:
        self._strip_usage = strip_usage
        self._caps = caps
        self._dialect = dialect
        self._request_id = request_id
        self._meter: StreamMeter | None = None
        self._marked = 0
        self._bytes = 0
        self._is_done = False
        self.ended = False
        """Whether Envoy has the whole of it."""
        self.stopped: Cause | None = None
        """Why the gateway has ended it; None while it has not."""

    @property
    def is_event_stream(self) -> bool:
        """Whether its headers have passed, and say so: then it can end with an event."""
        return self._meter is not None

    def headers(self, message: Any) -> bytes:
        """Answer for the response headers.

        What the Router had compressed is metered in Envoy: its end would not reach us (docs/envoy.md).
        """
        if wire.is_coded(message):
            return wire.leave_body()
        for header in message.response_headers.headers.headers:
            if header.key == "content-type" and header.raw_value.startswith(_EVENT_STREAM):
                self._meter = StreamMeter(strip_usage=self._strip_usage)
        return wire.take_body()

    def body(self, message: Any, *, now_ms: int) -> Iterator[bytes]:
        """Answer for a piece of the response body; may take several messages, and none once it was stopped."""
        if self.stopped is not None:
            return
        piece = message.response_body
        passed = self._passed(piece.body, last=piece.end_of_stream)
        over = not piece.end_of_stream and self._is_over()
        self.ended = piece.end_of_stream
        progress, words = self._noted(now_ms, last=self.ended)
        yield from wire.pass_body(passed, end_of_stream=self.ended, progress=progress, words=words)
        if over:
            yield from self.stop(Cause.OUTPUT_LIMIT, now=now_ms / _MS_PER_SECOND) or self._broken_off(now_ms)

    def trailers(self) -> Iterator[bytes]:
        """Answer for the response trailers: they end a body that has not said so itself."""
        if self.stopped is not None:
            return
        rest = b"" if self._meter is None else self._meter.rest()
        if rest:
            yield from wire.pass_body(rest, end_of_stream=False)
        self.ended = True
        yield wire.pass_trailers()

    def stop(self, cause: Cause, *, now: float) -> list[bytes] | None:
        """End an event stream with an error of its dialect; None of what is none, and of what has ended.

        `now` is seconds since the epoch. Pieces that come later are not answered.
        """
        if self._meter is None or self.ended or self.stopped is not None:
            return None
        self.stopped = cause
        last = stop.last_events(cause, dialect=self._dialect, request_id=self._request_id, now=now)
        progress: dict[str, int | str] = {"stopped": cause.value}
        if self._meter.events:  # those that the client has; what is held back is void
            progress |= {"events": self._meter.events, "bytes": self._bytes + len(last)}
        return list(wire.pass_body(last, end_of_stream=True, progress=progress))

    def _passed(self, piece: bytes, *, last: bool) -> bytes:
        passed = piece
        if self._meter is not None:
            passed = self._meter.feed(piece)
            passed += self._meter.rest() if last else b""
        self._bytes += len(passed)
        return passed

    def _is_over(self) -> bool:
        if self._meter is None:
            return exceeds(self._caps, events=0, response_bytes=self._bytes)
        return not self._meter.done and exceeds(self._caps, events=self._meter.events, response_bytes=self._bytes)

    def _broken_off(self, now_ms: int) -> list[bytes]:
        """The end of what is no event stream: Envoy resets it."""
        self.stopped = Cause.OUTPUT_LIMIT
        now = now_ms / _MS_PER_SECOND
        return [wire.stop(self.stopped, dialect=self._dialect, request_id=self._request_id, now=now)]

    def _noted(self, now_ms: int, *, last: bool) -> tuple[dict[str, int | str], dict[str, str]]:
        """What is noted for the access log. Marks are as rare as those of meter.lua, and for the same reason."""
        meter = self._meter
        if meter is None:
            return {}, {}
        ends = meter.done and not self._is_done
        self._is_done = meter.done
        words, meter.words = meter.words, {}
        events = meter.events
        if events == self._marked or (events >= _EVERY and events - self._marked < _EVERY and not (last or ends)):
            return {}, words
        progress: dict[str, int | str] = {} if self._marked else {"first_event_ms": now_ms}
        self._marked = events
        progress |= {"events": events, "bytes": self._bytes}
        if ends:
            progress |= {"done": "yes", "failed": "yes"} if meter.failed else {"done": "yes"}
        return progress, words
