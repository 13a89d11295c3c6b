"""What does a frame of the peer mean? RFC 9113 section 6, type by type."""

from collections.abc import Callable
from typing import ClassVar

from transport import frame, request, setting
from transport.error_code import ConnectionFault, ErrorCode, StreamFault
from transport.event import Event, Opened, Received, Reset
from transport.field_blocks import FieldBlock, FieldBlocks
from transport.frame import FrameType
from transport.http2_stream import Http2Stream
from transport.inbox import Inbox
from transport.limits import FloodGuard, Limits
from transport.outbox import Outbox
from transport.request import Fields, Malformed, Request, Requests
from transport.setting import LARGEST_WINDOW, Setting
from transport.streams import Streams

_SETTINGS = int(FrameType.SETTINGS)
_CONTINUATION = int(FrameType.CONTINUATION)


class Receiver:
    """Turns frames into events, and keeps what the connection knows of its streams and windows."""

    DRAIN_PING: ClassVar = b"draining"
    """When the peer answers it, all that it opened before it knew of the draining is here."""

    def __init__(self, limits: Limits, guard: FloodGuard, streams: Streams, inbox: Inbox, outbox: Outbox) -> None:
        self.acknowledged = self.draining = self.closing = False
        self._limits = limits
        self._guard = guard
        self._streams = streams
        self._inbox = inbox
        self._outbox = outbox
        self._blocks = FieldBlocks(limits)
        self._requests = Requests()
        self._greeted = False
        self._events: list[Event] = []
        self._by_type: dict[int, Callable[[int, int, bytes], None]] = {
            int(FrameType.DATA): self._data,
            int(FrameType.HEADERS): self._headers,
            int(FrameType.PRIORITY): self._priority,
            int(FrameType.RST_STREAM): self._rst_stream,
            int(FrameType.SETTINGS): self._settings,
            int(FrameType.PUSH_PROMISE): self._push_promise,
            int(FrameType.PING): self._ping,
            int(FrameType.GOAWAY): self._goaway,
            int(FrameType.WINDOW_UPDATE): self._window_update,
            int(FrameType.CONTINUATION): self._continuation,
        }

    def on_frame(self, events: list[Event], kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Take a frame in. Raises ConnectionFault."""
        if not self._greeted:
            if kind != _SETTINGS or flags & frame.ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is no SETTINGS")
            self._greeted = True
        if self._blocks.unfinished and kind != _CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "another frame within a header block")
        handler = self._by_type.get(kind)
        if handler is None:
            self._guard.idle_frame("frames of an unknown type")
            return
        self._events = events
        try:
            handler(flags, stream_id, payload)
        except StreamFault as fault:
            if self._streams.reset(fault.stream_id, fault.code):
                events.append(Reset(fault.stream_id, fault.code))
            else:
                self._guard.idle_frame("faults")

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        octets = len(payload)
        self._inbox.take(octets)
        stream = self._streams.open.get(stream_id)
        if stream is None or not stream.remote_open:
            self._inbox.give_back(octets)
            self._late(flags, stream_id, "DATA")
            return
        self._inbox.take_for(stream, octets)
        data = frame.unpadded(flags, payload) if flags & frame.PADDED else payload
        ended = bool(flags & frame.END_STREAM)
        if data:
            self._guard.moved()
        elif not ended:
            self._guard.idle_frame("empty DATA")
        self._body(stream, data, octets, ended=ended)

    def _body(self, stream: Http2Stream, data: bytes, octets: int, *, ended: bool) -> None:
        if stream.expected is not None:
            stream.expected -= len(data)
            if stream.expected < 0 or (ended and stream.expected):
                raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "another size than its content-length")
        if ended:
            stream.remote_open = False
        self._events.append(Received(stream.id, data, octets, ended))

    def _late(self, flags: int, stream_id: int, name: str) -> None:
        self._streams.require_late(stream_id, name)
        if flags & frame.END_STREAM:
            self._streams.ended_by_peer(stream_id)
        else:
            self._guard.idle_frame("frames on closed streams")

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        piece = frame.without_priority(flags, frame.unpadded(flags, payload))
        block = self._blocks.begin(flags, stream_id, piece)
        if block is not None:
            self._block(block)

    def _continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not payload:
            self._guard.idle_frame("empty CONTINUATION")
        block = self._blocks.go_on(flags, stream_id, payload)
        if block is not None:
            self._block(block)

    def _block(self, block: FieldBlock) -> None:
        stream = self._streams.open.get(block.stream_id)
        if stream is None and self._streams.may_be_new(block.stream_id):
            self._open(block)
        elif stream is None or not stream.remote_open:
            self._late(frame.END_STREAM if block.ended else 0, block.stream_id, "HEADERS")
        elif block.fields is None or not block.ended or not request.may_be_trailers(block.fields):
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "HEADERS that are no trailers")
        else:
            self._body(stream, b"", 0, ended=True)

    def _open(self, block: FieldBlock) -> None:
        self._guard.moved()
        if self.closing:  # opened before the peer had our last GOAWAY; it will open it elsewhere
            self._streams.pass_over(block.stream_id)
            return
        if len(self._streams.open) >= self._limits.streams:
            raise StreamFault(block.stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        if block.fields is None:
            raise StreamFault(block.stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many header fields")
        found = self._request(block.stream_id, block.fields)
        stream = Http2Stream(block.stream_id, self._outbox.initial_window, self._limits.stream_window)
        stream.remote_open = not block.ended
        stream.expected = found.content_length
        if block.ended and stream.expected:
            raise StreamFault(stream.id, ErrorCode.PROTOCOL_ERROR, "no body, but a content-length")
        self._streams.add(stream)
        self._events.append(Opened(stream.id, found, block.ended))

    def _request(self, stream_id: int, fields: Fields) -> Request:
        try:
            return self._requests.read(fields)
        except Malformed as malformed:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, str(malformed)) from malformed

    def _priority(self, _: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._guard.idle_frame("PRIORITY")
        if len(payload) == frame.PRIORITY_OCTETS:
            return
        if stream_id in self._streams.open:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} octets")
        frame.require_size(payload, frame.PRIORITY_OCTETS, "PRIORITY")

    def _rst_stream(self, _: int, stream_id: int, payload: bytes) -> None:
        code = frame.word(payload, "RST_STREAM")
        self._streams.require_opened(stream_id, "RST_STREAM")
        stream = self._streams.open.get(stream_id)
        if stream is None:
            self._guard.idle_frame("RST_STREAM on closed streams")
            return
        if not stream.answered:
            self._guard.reset()
        self._streams.forget(stream)
        self._events.append(Reset(stream_id, code))

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        _require_connection(stream_id, "SETTINGS")
        self._guard.idle_frame("SETTINGS")
        if flags & frame.ACK:
            frame.require_size(payload, 0, "SETTINGS with ACK")
            self.acknowledged = True
            self._blocks.forget_table()
            return
        values = setting.parse(payload)
        self._outbox.max_frame = values.get(Setting.MAX_FRAME_SIZE, self._outbox.max_frame)
        # Before what the new windows let pass: a peer counts by the old ones until it has this (section 6.5.3).
        self._outbox.add(frame.SETTINGS_ACK)
        if Setting.INITIAL_WINDOW_SIZE in values:
            self._resize(values[Setting.INITIAL_WINDOW_SIZE])

    def _resize(self, window: int) -> None:
        """Change the windows of all streams; they may be negative then (section 6.9.2)."""
        change, self._outbox.initial_window = window - self._outbox.initial_window, window
        try:
            for stream in list(self._streams.open.values()):
                self._outbox.widen_stream(stream, change)
        except StreamFault as fault:
            raise ConnectionFault(fault.code, "SETTINGS_INITIAL_WINDOW_SIZE makes a window too large") from fault

    def _push_promise(self, _: int, __: int, ___: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        _require_connection(stream_id, "PING")
        frame.require_ping(payload)
        self._guard.idle_frame("PING")
        if not flags & frame.ACK:
            self._outbox.add(frame.ping(payload, ack=True))
        elif payload == self.DRAIN_PING and self.draining and not self.closing:
            self.closing = True
            self._outbox.add(frame.goaway(self._streams.highest, ErrorCode.NO_ERROR))

    def _goaway(self, _: int, stream_id: int, payload: bytes) -> None:
        """Take note: a client that goes opens no more streams, and ends the connection itself."""
        _require_connection(stream_id, "GOAWAY")
        frame.require_goaway(payload)
        self._guard.idle_frame("GOAWAY")

    def _window_update(self, _: int, stream_id: int, payload: bytes) -> None:
        increment = frame.word(payload, "WINDOW_UPDATE") & frame.STREAM_MASK
        if stream_id == 0:
            self._widen(increment)
            return
        self._streams.require_opened(stream_id, "WINDOW_UPDATE")
        stream = self._streams.open.get(stream_id)
        if stream is not None and stream.waiting:
            self._guard.moved()
        self._guard.idle_frame("WINDOW_UPDATE")
        if stream is None:
            return
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        self._outbox.widen_stream(stream, increment)

    def _widen(self, increment: int) -> None:
        self._guard.idle_frame("WINDOW_UPDATE")
        if increment == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        if self._outbox.window + increment > LARGEST_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        self._outbox.widen(increment)


def _require_connection(stream_id: int, name: str) -> None:
    if stream_id:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{name} on stream {stream_id}")
