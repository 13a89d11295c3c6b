"""How does a frame of HTTP/2 look? RFC 9113 sections 4 and 6: its header, its types and flags, and those we send."""

import struct
from enum import IntEnum, IntFlag

from transport.error_code import ConnectionFault, ErrorCode

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""
HEADER = struct.Struct(">HBBBL")
"""A frame's header (section 4.1): 16 and 8 bits of length, type, flags, stream."""
HEADER_OCTETS = HEADER.size
STREAM_MASK = 0x7FFF_FFFF
"""The highest bit of a stream's identifier is reserved, and ignored."""
LEAST_MAX_FRAME_OCTETS = 16_384
"""What everybody must accept, and may be sent before a SETTINGS says otherwise (section 4.2)."""
_PING_OCTETS = 8
PRIORITY_OCTETS = 5
_ERROR = struct.Struct(">L")
_GOAWAY = struct.Struct(">LL")
_SETTING = struct.Struct(">HL")


class FrameType(IntEnum):
    """Section 6."""

    DATA = 0x0
    HEADERS = 0x1
    PRIORITY = 0x2
    RST_STREAM = 0x3
    SETTINGS = 0x4
    PUSH_PROMISE = 0x5
    PING = 0x6
    GOAWAY = 0x7
    WINDOW_UPDATE = 0x8
    CONTINUATION = 0x9


class Flag(IntFlag):
    """What the flags mean, where a type has them."""

    END_STREAM = 0x1
    ACK = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


# Plain numbers: an operator of IntFlag costs a microsecond.
END_STREAM = int(Flag.END_STREAM)
ACK = int(Flag.ACK)
END_HEADERS = int(Flag.END_HEADERS)
PADDED = int(Flag.PADDED)
PRIORITY = int(Flag.PRIORITY)


def frame(kind: FrameType, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame of any type. The payload must fit the peer's SETTINGS_MAX_FRAME_SIZE."""
    size = len(payload)
    return HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes, *, end: bool, max_frame: int) -> bytes:
    """A HEADERS frame, and as many CONTINUATION frames as the block needs (section 4.3)."""
    ending = END_STREAM if end else 0
    if len(block) <= max_frame:
        return frame(FrameType.HEADERS, END_HEADERS | ending, stream_id, block)
    pieces = [block[at : at + max_frame] for at in range(0, len(block), max_frame)]
    last = len(pieces) - 1
    return b"".join(
        frame(
            FrameType.CONTINUATION if number else FrameType.HEADERS,
            (END_HEADERS if number == last else 0) | (0 if number else ending),
            stream_id,
            piece,
        )
        for number, piece in enumerate(pieces)
    )


def reset(stream_id: int, code: ErrorCode) -> bytes:
    """RST_STREAM (section 6.4)."""
    return frame(FrameType.RST_STREAM, 0, stream_id, _ERROR.pack(code))


def settings(values: dict[int, int]) -> bytes:
    """SETTINGS (section 6.5)."""
    return frame(FrameType.SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0, b"")


def ping(payload: bytes, *, ack: bool) -> bytes:
    """PING (section 6.7)."""
    return frame(FrameType.PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: ErrorCode, why: str = "") -> bytes:
    """GOAWAY (section 6.8), with a word for whoever looks for the fault."""
    return frame(FrameType.GOAWAY, 0, 0, _GOAWAY.pack(last_stream_id, code) + why.encode()[:256])


def window_update(stream_id: int, increment: int) -> bytes:
    """WINDOW_UPDATE (section 6.9); stream 0 is the connection."""
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, _ERROR.pack(increment))


def unpadded(flags: int, payload: bytes) -> bytes:
    """What a DATA or HEADERS frame holds without its padding (sections 6.1 and 6.2)."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    if payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def without_priority(flags: int, payload: bytes) -> bytes:
    """The piece of a header block in a HEADERS frame; its priority is ignored (section 5.3.2)."""
    if not flags & PRIORITY:
        return payload
    if len(payload) < PRIORITY_OCTETS:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame too short for its priority")
    return payload[PRIORITY_OCTETS:]


def require_size(payload: bytes, octets: int, name: str) -> None:
    """Raise the connection error of a frame that has another size than its type has."""
    if len(payload) != octets:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{name} of {len(payload)} octets")


def word(payload: bytes, name: str) -> int:
    """The 32 bits that are a frame's whole payload."""
    require_size(payload, _ERROR.size, name)
    return int(_ERROR.unpack(payload)[0])


def require_ping(payload: bytes) -> None:
    """Raise the connection error of a PING of another size than 8 octets."""
    require_size(payload, _PING_OCTETS, "PING")


def require_goaway(payload: bytes) -> None:
    """Raise the connection error of a GOAWAY too short for its fields."""
    if len(payload) < _GOAWAY.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} octets")
