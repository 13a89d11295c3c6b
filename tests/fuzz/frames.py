"""Does it matter in which pieces a connection's bytes arrive, and does any byte harm the connection's owner?

Whatever comes: `receive` raises nothing, what is held stays within the limits, what is sent are whole frames, and after
`Failed` nothing more happens than a GOAWAY.
"""

from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from tests.fuzz.choices import Choices, pieces
from transport import frame
from transport.connection import Connection
from transport.error_code import ErrorCode
from transport.event import Event, Failed, Opened, Received
from transport.frame import HEADER_OCTETS, LEAST_MAX_FRAME_OCTETS, PREFACE, FrameType
from transport.header_block import encode
from transport.limits import Limits
from transport.request import Request

LONGEST = 160
_LIMITS = Limits(
    streams=3,
    stream_window=100,
    connection_window=66_000,
    header_list_octets=400,
    header_block_octets=300,
    idle_frames=12,
    resets=3,
)
_BLOCK = encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/s/m"), (b"te", b"trailers")])
_SHORT = encode([(b"grpc-status", b"0")])
_MOST_REMEMBERED = 4096
_LOOK_EACH = 8


def _opening(stream_id: int, flags: int = frame.END_HEADERS) -> bytes:
    return frame.frame(FrameType.HEADERS, flags, stream_id, _BLOCK)


_SETTINGS = frame.settings({4: 10, 5: 16_384})
# Three bytes say how the rest is cut, one whether a SETTINGS comes first, and whether streams are answered.
SEEDS = (
    b"\0\0\0\1" + _opening(1) + frame.frame(FrameType.DATA, 1, 1, b"abc"),
    b"\7\x20\1\3" + _opening(1) + frame.window_update(1, 60) + frame.window_update(0, 9) + frame.SETTINGS_ACK,
    b"\1\2\3\0" + _SETTINGS + _opening(1, 0) + frame.frame(FrameType.CONTINUATION, 4, 1, _SHORT),
    b"\x10\0\3\3" + _opening(1, 0x2D)[:3] + _SETTINGS + frame.ping(b"draining", ack=True) + _opening(3),
    b"\5\5\5\1"
    + _opening(1)
    + frame.frame(FrameType.DATA, frame.PADDED, 1, b"\2abcde")
    + frame.frame(FrameType.RST_STREAM, 0, 1, b"\0\0\0\x08")
    + frame.frame(FrameType.HEADERS, 5, 3, _BLOCK)
    + frame.frame(FrameType.PRIORITY, 0, 3, b"\0\0\0\1\1")
    + frame.goaway(0, ErrorCode.NO_ERROR),
)


def check(data: bytes) -> None:
    choices = Choices(data)
    sizes = bytes(choices.below(64) for _ in range(3))
    mode = choices.byte()
    sent = (_SETTINGS if mode & 1 else b"") + choices.rest()
    if mode & 2:
        _answered([PREFACE, *pieces(sent, sizes)])
        return
    whole, cut = Connection(_LIMITS), Connection(_LIMITS)
    events = whole.receive(PREFACE + sent)
    others: list[Event] = []
    for number, piece in enumerate(pieces(PREFACE + sent, sizes)):
        others += cut.receive(piece)
        if number % _LOOK_EACH == 0:
            _held(cut)
    _held(cut)
    assert [_value(event) for event in events] == [_value(event) for event in others]
    output = whole.take()
    assert output == cut.take()
    _over(whole, events)
    _over(cut, others)
    _frames(output, failed=whole.failed)


def _answered(received: list[bytes]) -> None:
    """Each stream is answered with more than its window lets pass at first, and what came is consumed."""
    connection = Connection(_LIMITS)
    output = b""
    events: list[Event] = []
    for piece in received:
        more = connection.receive(piece)
        _held(connection)
        for event in more:
            _answer(connection, event)
        output += connection.take()
        events += more
    _over(connection, events)
    _frames(output, failed=connection.failed)


def _answer(connection: Connection, event: Event) -> None:
    if not isinstance(event, Opened | Received) or not connection.is_open(event.stream_id):
        return
    if isinstance(event, Opened):
        connection.send_headers(event.stream_id, _SHORT)
        connection.send_data(event.stream_id, b"answer" * 4)
        return
    connection.consumed(event.stream_id, event.octets)
    if event.ended:
        connection.end(event.stream_id, _SHORT)


def _value(event: Event) -> object:
    """An event as a value: requests and faults compare by identity."""
    if isinstance(event, Failed):
        return event.fault.code, str(event.fault)
    if isinstance(event, Opened):
        return event.stream_id, request_value(event.request), event.ended
    return event


def request_value(request: Request) -> tuple[object, ...]:
    return tuple(getattr(request, name) for name in Request.__slots__)


def _held(connection: Connection) -> None:
    """White box: what a peer makes this side remember."""
    blocks, streams = connection._receiver._blocks, connection._streams
    assert len(connection._reader._rest) < HEADER_OCTETS + LEAST_MAX_FRAME_OCTETS
    assert len(blocks._pieces or b"") <= max(_LIMITS.header_block_octets, LEAST_MAX_FRAME_OCTETS)
    assert len(streams.open) <= _LIMITS.streams
    assert len(streams._ended_here) <= len(streams._order) <= _MOST_REMEMBERED
    assert not connection._outbox._in_turn.keys() - streams.open.keys()
    for stream in streams.open.values():
        assert 0 <= stream.unconsumed <= _LIMITS.stream_window
        assert stream.waiting_octets == sum(map(len, stream.waiting)) - stream.offset >= 0


def _over(connection: Connection, events: list[Event]) -> None:
    """A fault is the last event, and said once."""
    faults = [event for event in events if isinstance(event, Failed)]
    assert len(faults) == connection.failed
    if not faults:
        return
    # A stream that has nothing more to send may still be told of.
    assert connection.receive(_SETTINGS + _opening(101)) == []
    assert connection.take() == b""


def _frames(output: bytes, *, failed: bool) -> None:
    """What another implementation reads in what was sent."""
    at, goaways, ended = 0, 0, set[int]()
    last: Frame | None = None
    view = memoryview(output)
    while at < len(output):
        last, size = Frame.parse_frame_header(view[at : at + 9], strict=True)
        at += 9 + size
        assert at <= len(output)
        last.parse_body(view[at - size : at])
        if not isinstance(last, RstStreamFrame):
            assert last.stream_id not in ended
        if isinstance(last, HeadersFrame) and "END_STREAM" in last.flags:
            ended.add(last.stream_id)
        goaways += isinstance(last, GoAwayFrame) and last.error_code != 0
    assert goaways == failed
