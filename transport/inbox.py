"""How much may the peer send? Flow control as a receiver grants it: RFC 9113 section 5.2 and 6.9."""

from transport import frame
from transport.error_code import ConnectionFault, ErrorCode, StreamFault
from transport.http2_stream import Http2Stream
from transport.outbox import Outbox
from transport.setting import FIRST_WINDOW


class Inbox:
    """The windows of what comes in. What is consumed opens them again, half a window at a time."""

    def __init__(self, outbox: Outbox, *, window: int, stream_window: int) -> None:
        self._outbox = outbox
        self._size = self._window = window
        self._stream_size = stream_window
        self._uncredited = 0

    def greet(self) -> None:
        """Open the connection's window to its size; no SETTINGS does that (section 6.9.2)."""
        self._outbox.add(frame.window_update(0, self._size - FIRST_WINDOW))

    def take(self, octets: int) -> None:
        """Note a DATA frame, whatever becomes of it; its padding counts as well."""
        self._window -= octets
        if self._window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more than the window of the connection")

    def take_for(self, stream: Http2Stream, octets: int) -> None:
        """Note that the frame was a stream's."""
        stream.receive_window -= octets
        stream.unconsumed += octets
        if stream.receive_window < 0:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "more than the window of the stream")

    def give_back(self, octets: int) -> None:
        """Open the connection's window by what is held no more."""
        self._uncredited += octets
        if self._uncredited * 2 >= self._size:
            self._outbox.add(frame.window_update(0, self._uncredited))
            self._window += self._uncredited
            self._uncredited = 0

    def consumed(self, stream: Http2Stream, octets: int) -> None:
        """Open both windows by what is held no more."""
        stream.unconsumed -= octets
        self.give_back(octets)
        stream.uncredited += octets
        if stream.remote_open and stream.uncredited * 2 >= self._stream_size:
            self._outbox.add(frame.window_update(stream.id, stream.uncredited))
            stream.receive_window += stream.uncredited
            stream.uncredited = 0

    def forget(self, stream: Http2Stream) -> None:
        """Give back all that a stream holds."""
        self.give_back(stream.unconsumed)
        stream.unconsumed = 0
