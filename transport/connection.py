"""What has a server to say on an HTTP/2 connection, and what does it hear? The server's side of RFC 9113.

No I/O: bytes in, events and bytes out. Only what a server of gRPC needs: nothing is pushed, priorities are ignored
(section 5.3.2), and every table and queue has a bound (section 10.5).
"""

from transport import frame
from transport.error_code import ConnectionFault, ErrorCode
from transport.event import Drained, Event, Failed
from transport.frame_reader import FrameReader
from transport.inbox import Inbox
from transport.limits import FloodGuard, Limits
from transport.outbox import Outbox
from transport.receiver import Receiver
from transport.setting import LARGEST_WINDOW, Setting
from transport.streams import Streams


class Connection:
    """A connection, from its first byte. What it has to say is in `take`."""

    def __init__(self, limits: Limits) -> None:
        self.failed = False
        self._outbox = Outbox()
        self._inbox = Inbox(self._outbox, window=limits.connection_window, stream_window=limits.stream_window)
        self._streams = Streams(self._inbox, self._outbox, remembered=limits.streams)
        self._guard = FloodGuard(limits)
        self._reader = FrameReader()
        self._receiver = Receiver(limits, self._guard, self._streams, self._inbox, self._outbox)
        self._outbox.add(frame.settings(_announced(limits)))
        self._inbox.greet()

    @property
    def acknowledged(self) -> bool:
        """Whether the peer has accepted our SETTINGS (section 6.5.3)."""
        return self._receiver.acknowledged

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams.open

    @property
    def closing(self) -> bool:
        """Whether the peer knows that it is to open no more streams."""
        return self._receiver.closing

    def take(self) -> bytes:
        """What is to be sent now."""
        return self._outbox.take()

    def receive(self, data: bytes) -> list[Event]:
        """Take in what the peer sent. After `Failed` nothing is taken in any more."""
        events: list[Event] = []
        if self.failed:
            return events
        try:
            for kind, flags, stream_id, payload in self._reader.read(data):
                self._receiver.on_frame(events, kind, flags, stream_id, payload)
        except ConnectionFault as fault:
            self.failed = True
            self._outbox.add(frame.goaway(self._streams.highest, fault.code, str(fault)))
            events.append(Failed(fault))
        self._after_sending(events)
        return events

    def is_open(self, stream_id: int) -> bool:
        """Whether an answer can still be sent."""
        return stream_id in self._streams.open

    def send_headers(self, stream_id: int, block: bytes) -> None:
        """Begin an answer. To a stream that is closed nothing is sent: events may lie behind its end."""
        stream = self._streams.open.get(stream_id)
        if stream is None:
            return
        stream.answered = True
        self._guard.answered()
        self._outbox.headers(stream, block)

    def send_data(self, stream_id: int, data: bytes) -> None:
        """Go on with an answer; what finds no room in the windows waits."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._outbox.data(stream, data)

    def discard(self, stream_id: int) -> None:
        """Throw away what waits of an answer: it is to end in the midst."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._outbox.forget(stream)

    def end(self, stream_id: int, block: bytes) -> None:
        """End an answer with trailers, or with nothing before them; they leave after all that waits."""
        stream = self._streams.open.get(stream_id)
        if stream is None:
            return
        stream.answered = True
        self._guard.answered()
        if self._outbox.trailers(stream, block):
            self._streams.ended(stream)

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream at once, if it is open."""
        if stream_id in self._streams.open:
            self._streams.reset(stream_id, code)

    @property
    def all_waiting_octets(self) -> int:
        """How much of all answers waits for the peer."""
        return self._outbox.waiting_octets

    def waiting_octets(self, stream_id: int) -> int:
        """How much of an answer waits for the peer."""
        stream = self._streams.open.get(stream_id)
        return 0 if stream is None else stream.waiting_octets

    def consumed(self, stream_id: int, octets: int) -> None:
        """Give back room in the windows: so many octets that were received are held no more."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:  # otherwise its octets were given back with it
            self._inbox.consumed(stream, octets)

    def hold(self) -> None:
        """Keep DATA back: what was taken is not being sent."""
        self._outbox.held = True

    def release(self) -> list[Event]:
        """Go on after `hold`."""
        events: list[Event] = []
        self._outbox.release()
        self._after_sending(events)
        return events

    def drain(self) -> None:
        """Ask the peer to open no more streams. Those that are under way to us are served (section 6.8)."""
        if not self._receiver.draining:
            self._receiver.draining = True
            self._outbox.add(frame.goaway(LARGEST_WINDOW, ErrorCode.NO_ERROR))
            self._outbox.add(frame.ping(self._receiver.DRAIN_PING, ack=False))

    def calm(self) -> None:
        """Count floods anew. Called once a second."""
        self._guard.calm()

    def _after_sending(self, events: list[Event]) -> None:
        """Tell of the streams of which nothing waits any more, and end those that were to end then."""
        if not self._outbox.drained:
            return
        drained, self._outbox.drained = self._outbox.drained, []
        for stream_id in drained:
            stream = self._streams.open.get(stream_id)
            if stream is None or stream.waiting:
                continue
            if stream.trailers is None:
                events.append(Drained(stream_id))
            elif self._outbox.trailers(stream, stream.trailers):
                self._streams.ended(stream)


def _announced(limits: Limits) -> dict[int, int]:
    return {
        # What a peer puts into a dynamic table must be looked up; a list as a whole is known again faster.
        int(Setting.HEADER_TABLE_SIZE): 0,
        int(Setting.MAX_CONCURRENT_STREAMS): limits.streams,
        int(Setting.INITIAL_WINDOW_SIZE): limits.stream_window,
        int(Setting.MAX_HEADER_LIST_SIZE): limits.header_list_octets,
    }
