"""What is sent to the peer, and what must wait? Flow control as a sender obeys it: RFC 9113 section 5.2 and 6.9."""

from collections.abc import Iterable

from transport import frame
from transport.error_code import ErrorCode, StreamFault
from transport.frame import HEADER, LEAST_MAX_FRAME_OCTETS
from transport.http2_stream import Http2Stream
from transport.setting import FIRST_WINDOW, LARGEST_WINDOW

_DATA = int(frame.FrameType.DATA)


class Outbox:
    """The frames to send next, and what waits for a window behind them.

    While it is `held`, nobody takes what is sent: DATA waits then as well.
    """

    def __init__(self) -> None:
        self.window = FIRST_WINDOW
        self.initial_window = FIRST_WINDOW
        self.max_frame = LEAST_MAX_FRAME_OCTETS
        self.held = False
        self.waiting_octets = 0
        self.drained: list[int] = []
        """Streams whose last waiting octet has left since somebody looked."""
        self._frames: list[bytes] = []
        # What only the connection's window keeps, in turn.
        self._in_turn: dict[int, Http2Stream] = {}

    def take(self) -> bytes:
        """All frames that may be sent now."""
        frames, self._frames = self._frames, []
        return b"".join(frames)

    def add(self, ready: bytes) -> None:
        """Send a frame that no window holds back."""
        self._frames.append(ready)

    def headers(self, stream: Http2Stream, block: bytes) -> None:
        """Begin an answer."""
        self._frames.append(frame.headers(stream.id, block, end=False, max_frame=self.max_frame))

    def data(self, stream: Http2Stream, data: bytes) -> None:
        """Send a piece of an answer: now, or when the windows let it pass."""
        size = len(data)
        fits = size <= stream.send_window and size <= self.window and size <= self.max_frame
        if fits and not stream.waiting and not self.held:
            stream.send_window -= size
            self.window -= size
            self._frames.append(HEADER.pack(size >> 8, size & 0xFF, _DATA, 0, stream.id) + data)
            return
        stream.waiting.append(data)
        stream.waiting_octets += size
        self.waiting_octets += size
        self._send([stream])

    def trailers(self, stream: Http2Stream, block: bytes) -> bool:
        """End an answer, after all that waits; whether the end has left."""
        if stream.waiting:
            stream.trailers = block
            return False
        self._frames.append(frame.headers(stream.id, block, end=True, max_frame=self.max_frame))
        return True

    def forget(self, stream: Http2Stream) -> None:
        """Throw away what waits of a stream."""
        self.waiting_octets -= stream.waiting_octets
        stream.waiting.clear()
        stream.waiting_octets = stream.offset = 0
        self._in_turn.pop(stream.id, None)

    def widen(self, increment: int) -> None:
        """Note that the connection's window has grown (section 6.9.1)."""
        self.window += increment
        self._send(self._in_turn.values())

    def widen_stream(self, stream: Http2Stream, increment: int) -> None:
        """Note that a stream's window has grown. Raises StreamFault when it is too large then."""
        if stream.send_window + increment > LARGEST_WINDOW:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "a window beyond 2^31-1")
        stream.send_window += increment
        if stream.waiting:
            self._send([stream])

    def release(self) -> None:
        """Go on after it was held."""
        self.held = False
        self._send(self._in_turn.values())

    def _send(self, streams: Iterable[Http2Stream]) -> None:
        """Send what the windows allow of these, a frame of each in turn."""
        turn = list(streams)
        while turn:
            turn = [stream for stream in turn if self._send_frame(stream)]

    def _send_frame(self, stream: Http2Stream) -> bool:
        """Send a frame of what waits; whether there may be another."""
        room = min(stream.send_window, self.window, self.max_frame)
        if room <= 0 or self.held:
            if stream.send_window > 0:
                self._in_turn[stream.id] = stream
            else:
                self._in_turn.pop(stream.id, None)
            return False
        data = self._cut(stream, room)
        size = len(data)
        stream.send_window -= size
        self.window -= size
        self._frames.append(HEADER.pack(size >> 8, size & 0xFF, _DATA, 0, stream.id) + data)
        if stream.waiting:
            return True
        self._in_turn.pop(stream.id, None)
        self.drained.append(stream.id)
        return False

    def _cut(self, stream: Http2Stream, room: int) -> bytes:
        """Take at most so many octets of what waits first."""
        first, at = stream.waiting[0], stream.offset
        piece = first[at : at + room]
        if at + len(piece) == len(first):
            stream.waiting.popleft()
            stream.offset = 0
        else:
            stream.offset = at + len(piece)
        stream.waiting_octets -= len(piece)
        self.waiting_octets -= len(piece)
        return piece
