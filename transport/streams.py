"""Which streams are open on a connection, and which were? RFC 9113 section 5.1."""

from collections import deque

from transport import frame
from transport.error_code import ConnectionFault, ErrorCode, StreamFault
from transport.http2_stream import Http2Stream
from transport.inbox import Inbox
from transport.outbox import Outbox


class Streams:
    """The open streams, the highest ever opened, and of those that only this side has ended the last ones.

    To these the peer may have sent frames before it knew. There are as many remembered as may be open at once.
    """

    def __init__(self, inbox: Inbox, outbox: Outbox, *, remembered: int) -> None:
        self.open: dict[int, Http2Stream] = {}
        self.highest = 0
        self._most_remembered = remembered
        self._inbox = inbox
        self._outbox = outbox
        self._ended_here: set[int] = set()
        self._order: deque[int] = deque()

    def may_be_new(self, stream_id: int) -> bool:
        """Whether nobody has opened it."""
        return stream_id > self.highest

    def add(self, stream: Http2Stream) -> None:
        """Open a stream."""
        self.highest = stream.id
        self.open[stream.id] = stream

    def refuse(self, stream_id: int, code: ErrorCode) -> None:
        """Open it no further: nothing was done for it."""
        self.highest = max(self.highest, stream_id)
        self._outbox.add(frame.reset(stream_id, code))
        self._remember(stream_id)

    def pass_over(self, stream_id: int) -> None:
        """Take no notice of a stream, and of what is still sent to it (section 6.8)."""
        self.highest = stream_id
        self._remember(stream_id)

    def ended(self, stream: Http2Stream) -> None:
        """Forget a stream whose answer has left; a peer that is still sending is asked not to (section 8.1)."""
        if stream.remote_open:
            self.refuse(stream.id, ErrorCode.NO_ERROR)
        self.forget(stream)

    def reset(self, stream_id: int, code: ErrorCode) -> bool:
        """End a stream by a RST_STREAM; whether it was open."""
        stream = self.open.get(stream_id)
        self.refuse(stream_id, code)
        if stream is not None:
            self.forget(stream)
        return stream is not None

    def forget(self, stream: Http2Stream) -> None:
        """Let a stream go that neither side uses any more."""
        del self.open[stream.id]
        self._inbox.forget(stream)
        self._outbox.forget(stream)

    def require_opened(self, stream_id: int, name: str) -> None:
        """Raise the connection error of a frame on an idle stream; a server's are always idle here."""
        if stream_id > self.highest or stream_id % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{name} on stream {stream_id}, which is idle")

    def require_late(self, stream_id: int, name: str) -> None:
        """Raise the fault of a frame to a stream that the peer has ended, unless it may not have known."""
        self.require_opened(stream_id, name)
        if stream_id in self.open:  # half-closed (remote)
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, f"{name} after END_STREAM")
        if stream_id not in self._ended_here:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"{name} on stream {stream_id}, which is closed")

    def ended_by_peer(self, stream_id: int) -> None:
        """The peer has ended it too: nothing more may come."""
        self._ended_here.discard(stream_id)

    def _remember(self, stream_id: int) -> None:
        self._ended_here.add(stream_id)
        self._order.append(stream_id)
        if len(self._order) > self._most_remembered:
            self._ended_here.discard(self._order.popleft())
