"""Does our server take what the h2 package takes, and refuse what it refuses, frame by frame?

Where h2 ends the connection, ours may end the stream alone: h2 knows no stream error of a malformed request. Where the
two differ otherwise, the difference is one of tests/fuzz/differences.py.
"""

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, TrailersReceived
from h2.events import Event as TheirEvent
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from tests.fuzz.choices import Choices
from tests.fuzz.differences import ONLY_H2_REFUSES, ONLY_OURS_REFUSES, Case, named
from tests.fuzz.frame_choices import FIRST, chosen_frame
from tests.fuzz.reached import REACHED
from transport import frame
from transport.connection import Connection
from transport.event import Event, Failed, Opened, Received, Reset
from transport.frame import HEADER, PREFACE, FrameType
from transport.limits import Limits

LONGEST = 112
_MOST_FRAMES = 12
# Windows and lists as h2 has them at first.
_LIMITS = Limits(
    streams=4,
    stream_window=65_535,
    connection_window=1_048_576,
    header_list_octets=65_536,
    header_block_octets=200_000,
)
_NAMED = (b":method", b":path", b"content-type", b"grpc-timeout", b"grpc-encoding")
SEEDS = (
    b"\1\0\1\0\0\0\2\0\0\1\0\3abc",
    b"\0" + bytes(range(120)),
    b"\1" + bytes(range(0, 240, 2)),
    b"\1\1\1\1\1\1\1\1\2\2\2\2\2\3\3\3\4\4\4\4\5\5\6\6\7\7\x08\x08",
    # A request, then DATA that is all padding; two requests, then a WINDOW_UPDATE on stream 2.
    bytes(11) + b"\6\0\x08\0\0\0\0\1\x1f\0",
    bytes(21) + b"\x0c\0\x0f\x08\1\0\0",
    *REACHED.values(),
)


def check(data: bytes) -> None:
    differences(data)


def differences(data: bytes) -> list[str]:
    """Those that the frames came to, all of them known ones."""
    choices = Choices(data)
    both = _Both()
    both.receive(PREFACE + FIRST)
    if choices.yes():
        both.receive(frame.SETTINGS_ACK)
    for _ in range(_MOST_FRAMES):
        if not choices or not both.receive(chosen_frame(choices, both.newest, both.unfinished)):
            break
    return both.differences


class _Both:
    """A server of ours and one of h2's that hear the same."""

    def __init__(self) -> None:
        self._ours = Connection(_LIMITS)
        self._theirs = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._theirs.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: _LIMITS.streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: _LIMITS.header_list_octets,
            },
        )
        # In force when the client acknowledges it, as ours.
        self._theirs.local_settings[SettingCodes.HEADER_TABLE_SIZE] = 0
        self._theirs.initiate_connection()
        self._theirs.increment_flow_control_window(_LIMITS.connection_window - 65_535)
        self.newest = self.unfinished = 0
        self.differences: list[str] = []
        self._ending = 0
        self._expected: dict[int, int] = {}
        self._reset: set[int] = set()

    def receive(self, data: bytes) -> bool:
        """Give both a frame; whether both took it, and it is worth going on."""
        live = frozenset(self._ours._streams.open)
        # h2 forgets closed streams when it counts the open ones.
        _ = self._theirs.open_inbound_streams
        events = self._ours.receive(data)
        error, their_events = "", list[TheirEvent]()
        try:
            their_events = self._theirs.receive_data(data)
        except ProtocolError as refusal:
            error = f"{type(refusal).__name__}: {refusal}"
        theirs_refused = bool(error) or _has_reset(self._theirs.data_to_send())
        ours_refused = self._ours.failed or _has_reset(self._ours.take())
        case = self._case(data.removeprefix(PREFACE), live, error, their_events)
        if ours_refused and not theirs_refused:
            self.differences.append(named(ONLY_OURS_REFUSES, case))
            return False
        if theirs_refused and not ours_refused:
            self.differences.append(named(ONLY_H2_REFUSES, case))
            return not error
        if theirs_refused:
            self._reset.update(live.difference(self._ours._streams.open))
            # A stream that both have reset leaves the others as they are.
            return not error and not self._ours.failed
        assert _our_values(events) == _their_values(their_events), (case, events, their_events)
        self._note(their_events)
        # A client's GOAWAY ends all for h2; ours serves what is under way (section 6.8).
        return case.kind != FrameType.GOAWAY

    def _case(self, data: bytes, live: frozenset[int], error: str, events: list[TheirEvent]) -> Case:
        _, _, kind, flags, stream_id = HEADER.unpack_from(data)
        stream_id &= frame.STREAM_MASK
        fields = next((event.headers for event in events if isinstance(event, RequestReceived)), ())
        trailers = kind in (FrameType.HEADERS, FrameType.CONTINUATION) and stream_id in live
        return Case(
            kind=kind,
            flags=flags | self._began(kind, flags, stream_id),
            stream_id=stream_id,
            payload=data[frame.HEADER_OCTETS :],
            highest=self.newest,
            live=live,
            error=error,
            fields=tuple((bytes(name), bytes(value)) for name, value in fields),
            trailers=trailers,
            expected=self._expected.get(stream_id),
            reset=stream_id in self._reset,
        )

    def _began(self, kind: int, flags: int, stream_id: int) -> int:
        """Note whether a header block is whole now. Of a CONTINUATION, the END_STREAM of the HEADERS it continues."""
        if kind == FrameType.HEADERS:
            self._ending = flags & frame.END_STREAM
        if kind in (FrameType.HEADERS, FrameType.CONTINUATION):
            self.unfinished = 0 if flags & frame.END_HEADERS else stream_id
        return self._ending if kind == FrameType.CONTINUATION and stream_id else 0

    def _note(self, events: list[TheirEvent]) -> None:
        for event in events:
            if isinstance(event, RequestReceived):
                self.newest = event.stream_id
                length = dict(event.headers).get(b"content-length")
                if length is not None:
                    self._expected[event.stream_id] = int(length)
            elif isinstance(event, DataReceived) and event.stream_id in self._expected:
                self._expected[event.stream_id] -= len(event.data)


def _has_reset(output: bytes) -> bool:
    at = 0
    while at < len(output):
        high, low, kind, _, _ = HEADER.unpack_from(output, at)
        if kind == FrameType.RST_STREAM:
            return True
        at += frame.HEADER_OCTETS + (high << 8 | low)
    return False


def _our_values(events: list[Event]) -> list[object]:
    values = list[object]()
    for event in events:
        if isinstance(event, Opened):
            found = event.request
            named_fields = (found.method, found.path, found.content_type, found.timeout, found.encoding)
            values.append(("request", event.stream_id, named_fields, found.content_length))
        elif isinstance(event, Received):
            # Trailers hold nothing that a server reads.
            values.append(("data", event.stream_id, event.data, event.octets))
        elif isinstance(event, Reset):
            values.append(("reset", event.stream_id, int(event.code)))
        assert not isinstance(event, Failed)
        if isinstance(event, Opened | Received) and event.ended:
            values.append(("ended", event.stream_id))
    return values


def _their_values(events: list[TheirEvent]) -> list[object]:
    values = list[object]()
    for event in events:
        if isinstance(event, RequestReceived):
            fields = dict(reversed(event.headers))
            length = fields.get(b"content-length")
            found = tuple(fields.get(name, b"") for name in _NAMED)
            values.append(("request", event.stream_id, found, None if length is None else int(length)))
        elif isinstance(event, TrailersReceived):
            values.append(("data", event.stream_id, b"", 0))
        elif isinstance(event, DataReceived):
            values.append(("data", event.stream_id, event.data, event.flow_controlled_length))
        elif isinstance(event, StreamReset):
            values.append(("reset", event.stream_id, int(event.error_code or 0)))
        elif isinstance(event, StreamEnded):
            values.append(("ended", event.stream_id))
    return values
