"""Which frame comes next? Mostly one that a client may send, on one of a few streams; sometimes a damaged one."""

import struct

from tests.fuzz.choices import Choices
from transport import frame
from transport.frame import FrameType
from transport.header_block import encode

FIRST = frame.settings({})
_STREAMS = (1, 3, 5, 7, 9, 1, 3, 0, 2, 11, 0x7FFF_FFFF)
_REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/m"),
    (b":authority", b"localhost"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
_CONNECT = ((b":method", b"CONNECT"), (b":authority", b"localhost"))
_EXTENDED = (
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"http"),
    (b":path", b"/"),
    (b":authority", b"localhost"),
)
_TRAILERS = ((b"grpc-status", b"0"),)
_BODIES = (*[_REQUEST] * 9, _TRAILERS, _CONNECT, (), _EXTENDED)
_EXTRA = (
    *((b"content-length", value) for value in (b"0", b"3", b"7", b"-1", b"3x", b"1" * 19, b"")),
    *((b"grpc-timeout", b"1S"), (b"grpc-encoding", b"gzip"), (b"cookie", b"a=b"), (b"cookie", b"c=d")),
    *((b"te", b"gzip"), (b"te", b"Trailers"), (b"te", b"trailers"), (b"host", b"localhost"), (b"host", b"other")),
    *(
        (b"connection", b"close"),
        (b"upgrade", b"h2c"),
        (b"X-Upper", b"1"),
        (b"", b"empty"),
        (b"a:b", b"1"),
        (b":", b""),
    ),
    *((b":status", b"200"), (b":status", b"100"), (b":protocol", b"websocket"), (b":path", b""), (b":method", b"")),
    *((b":path", b"/x"), (b":scheme", b""), (b":authority", b""), (b"x\x7f", b"1"), (b"x y", b"1"), (b"x\xe9", b"1")),
    *(
        (b"x", b""),
        (b"x", b" 1"),
        (b"x", b"1\t"),
        (b"x", b"a\0b"),
        (b"x", b"a\nb"),
        (b"x", b"\xff\x80"),
        (b"x", b"\x0b"),
    ),
    *((b"x", b"y" * 3000), (b"x", b"y" * 40_000)),
)
_WORDS = (
    1,
    2,
    3,
    7,
    8,
    100,
    65_535,
    65_536,
    4,
    5,
    6,
    0,
    0x7FFF_0000,
    0x7FFF_0001,
    0x7FFF_FFFF,
    0x8000_0000,
    0x8000_0001,
    0xFFFF_FFFF,
)
_SETTINGS = (1, 2, 3, 4, 4, 5, 6, 8, 9, 0, 0xFFFF)
_VALUES = (0, 1, 2, 16_383, 16_384, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 65_535, 100)
_SIZES = (0, 1, 3, 4, 7, 100, 16_384)
# From which byte on a frame is damaged; from which of 16 choices on a HEADERS is none of a new stream, a stream is any.
_DAMAGED, _TRAILING, _ANY = 240, 10, 14
_Frame = tuple[int, int, int, bytes]


def chosen_frame(choices: Choices, newest: int, unfinished: int) -> bytes:
    """One frame, of 16,384 octets of payload at most.

    `newest` is the highest stream that is known, `unfinished` that of which a header block is not whole, or 0.
    """
    make = choices.pick(_MAKERS)
    expected = choices.byte() < _DAMAGED
    if unfinished and expected:
        kind, flags, stream_id, payload = _continuation(choices, unfinished)
    else:
        kind, flags, stream_id, payload = (_headers if expected and not newest else make)(choices, newest)
    if choices.byte() >= _DAMAGED:
        change = choices.below(6)
        if change == 0:
            flags ^= 1 << choices.below(8)
        elif change == 1:
            stream_id = choices.pick(_STREAMS)
        elif change == 2:
            payload = payload[: choices.byte()]
        elif change == 3:
            payload += choices.take(8)
        elif change == 4:
            stream_id |= frame.STREAM_MASK + 1  # the reserved bit
        else:
            kind = choices.below(16)
    payload = payload[: frame.LEAST_MAX_FRAME_OCTETS]
    size = len(payload)
    return frame.HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def _stream(choices: Choices, newest: int) -> int:
    """The newest stream, or the one before, or any."""
    choice = choices.below(16)
    if choice < _ANY:
        return newest or 1
    return max(newest - 2, 1) if choice == _ANY else choices.pick(_STREAMS)


def _headers(choices: Choices, newest: int) -> _Frame:
    choice = choices.below(16)
    if choice < _TRAILING:  # a new stream
        stream_id, fields, flags = min(newest + 2 if newest else 1, frame.STREAM_MASK), [*choices.pick(_BODIES)], 0
    elif choice < _ANY:
        stream_id, fields, flags = newest or 1, [*_TRAILERS], frame.END_STREAM
    else:
        stream_id, fields, flags = choices.pick(_STREAMS), [*choices.pick(_BODIES)], 0
    flags ^= choices.byte() & (frame.END_STREAM if choices.yes() else frame.PADDED | frame.PRIORITY)
    flags |= 0 if choices.below(16) == 15 else frame.END_HEADERS
    return FrameType.HEADERS, flags, stream_id, _wrapped(choices, flags, _block(choices, fields))


def _block(choices: Choices, fields: list[tuple[bytes, bytes]]) -> bytes:
    """The fields as they are, with others among them, with one too few or empty; or what needs the dynamic table."""
    how = choices.below(16)
    if 8 <= how < 13:
        for _ in range(how - 7 if how < 10 else 1):
            fields.insert(choices.below(8) if how == 12 else len(fields), choices.pick(_EXTRA))
    elif how == 13 and fields:
        del fields[choices.below(len(fields))]
    elif how == 14 and fields:
        at = choices.below(len(fields))
        fields[at] = (fields[at][0], b"")
    block = encode(fields)
    if how == 15:
        block += choices.pick((b"\x40\x01a\x01b", b"\xbe", b"\x7e\x01c", b"\x10\x01a\x81\x1f", b"\x80"))
    # An update to the size that is due after the client's acknowledgement, and one to what is allowed before it.
    return choices.pick((*[b"\x20"] * 14, b"", b"\x3f\xe1\x1f")) + block


def _wrapped(choices: Choices, flags: int, content: bytes) -> bytes:
    """With a priority and with padding, if the flags say so."""
    if flags & frame.PRIORITY:
        content = struct.pack(">LB", choices.pick((0, 1, 3, 0x8000_0005)), choices.byte()) + content
    if flags & frame.PADDED:
        padding = choices.below(8)
        # As much as there is may not be padding; one less may.
        wrong = min(len(content) + padding + choices.below(3), 255)
        content = bytes((padding if choices.below(32) < 31 else wrong,)) + content + bytes(padding)
    return content


def _continuation(choices: Choices, newest: int) -> _Frame:
    flags = 0 if choices.below(4) == 3 else frame.END_HEADERS
    return FrameType.CONTINUATION, flags, newest, encode(choices.pick((_TRAILERS, _REQUEST, ())))


def _data(choices: Choices, newest: int) -> _Frame:
    flags = choices.byte() & (frame.END_STREAM if choices.yes() else frame.PADDED)
    return FrameType.DATA, flags, _stream(choices, newest), _wrapped(choices, flags, bytes(choices.pick(_SIZES)))


def _rst_stream(choices: Choices, newest: int) -> _Frame:
    return FrameType.RST_STREAM, 0, _stream(choices, newest), struct.pack(">L", choices.pick(_WORDS))


def _window_update(choices: Choices, newest: int) -> _Frame:
    return (
        FrameType.WINDOW_UPDATE,
        0,
        choices.pick((0, _stream(choices, newest))),
        struct.pack(">L", choices.pick(_WORDS)),
    )


def _settings(choices: Choices, _: int) -> _Frame:
    if choices.below(4) == 3:
        return FrameType.SETTINGS, frame.ACK, 0, b""
    number = choices.below(8)
    entries = [_setting(choices, number) for _ in range(number & 3)]
    return FrameType.SETTINGS, 0, 0, b"".join(entries)


def _setting(choices: Choices, number: int) -> bytes:
    """The window that streams have at first; now and then any setting, right or wrong."""
    if number < 7:
        return struct.pack(">HL", 4, choices.pick((0, 100, 65_535, 2**31 - 1, 16_384)))
    return struct.pack(">HL", choices.pick(_SETTINGS), choices.pick(_VALUES))


def _other(choices: Choices, _: int) -> _Frame:
    kind = choices.below(16)
    if kind == FrameType.PRIORITY:
        payload = struct.pack(">LB", choices.pick(_STREAMS), choices.byte())
        return kind, 0, choices.pick(_STREAMS), payload
    if kind == FrameType.GOAWAY:
        return kind, 0, 0, struct.pack(">LL", choices.pick(_WORDS), choices.pick(_WORDS)) + choices.take(4)
    if kind == FrameType.PUSH_PROMISE:
        return kind, frame.END_HEADERS, choices.pick(_STREAMS), struct.pack(">L", 2) + encode(_REQUEST)
    if kind <= FrameType.CONTINUATION:
        return FrameType.PING, choices.byte() & frame.ACK, 0, choices.take(2) + bytes(7)
    return kind, choices.byte(), choices.pick(_STREAMS), choices.take(16)


_MAKERS = (
    *(_headers, _headers, _headers, _headers, _headers, _headers, _data, _data, _data, _data),
    *(_continuation, _rst_stream, _window_update, _window_update, _settings, _other),
)
