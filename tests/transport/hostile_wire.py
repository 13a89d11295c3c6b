"""What can a client of HTTP/2 send, legal or not? Any frame, and the frames of a call.

Section numbers are those of RFC 9113.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum
from functools import lru_cache

import h2.errors
import hpack

Code = h2.errors.ErrorCodes

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NAME = "test.Service"
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384

Fields = Iterable[tuple[bytes, bytes]]


class Kind(IntEnum):
    """Section 6, and one type that nobody has defined."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9
    UNKNOWN = 0xBE


class Setting(IntEnum):
    """Section 6.5.2."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
PRIORITISED = 0x20


def frame(kind: int, stream_id: int = 0, payload: bytes = b"", flags: int = 0) -> bytes:
    """Any frame. Section 4.1."""
    return frame_head(kind, stream_id, len(payload), flags) + payload


def frame_head(kind: int, stream_id: int, length: int, flags: int = 0) -> bytes:
    """The nine bytes before a payload of that length, which may never come."""
    return struct.pack(">HBBBL", length >> 8, length & 0xFF, kind, flags, stream_id)


def u32(value: int) -> bytes:
    return struct.pack(">L", value)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(Kind.SETTINGS, payload=b"".join(struct.pack(">HL", *pair) for pair in pairs))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, stream_id, u32(increment))


def reset(stream_id: int, code: int = Code.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, stream_id, u32(code))


def request_fields(method: str = "Unary", changes: Mapping[bytes, bytes | None] | None = None) -> Fields:
    """What a client of gRPC sends; a change to None leaves a field out."""
    fields: dict[bytes, bytes | None] = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/{NAME}/{method}".encode(),
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    fields |= changes or {}
    return [(name, value) for name, value in fields.items() if value is not None]


def block(fields: Fields, *, huffman: bool = False) -> bytes:
    """A field block that no other depends on, whatever table size the server has announced: it sets the size to 0."""
    return _block(tuple(fields), huffman=huffman)


@lru_cache
def _block(fields: tuple[tuple[bytes, bytes], ...], *, huffman: bool) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(fields, huffman=huffman)


def headers(stream_id: int, fields: Fields, flags: int = END_HEADERS) -> bytes:
    return frame(Kind.HEADERS, stream_id, block(fields), flags)


def opening(stream_id: int, method: str = "Echo", flags: int = END_HEADERS, **changes: bytes) -> bytes:
    """The HEADERS of a call; a keyword is a field, with _ for -."""
    more = {name.replace("_", "-").encode(): value for name, value in changes.items()}
    return headers(stream_id, request_fields(method, more), flags)


def message(body: bytes, *, flag: int = 0) -> bytes:
    """A length-prefixed message of gRPC."""
    return struct.pack(">BL", flag, len(body)) + body


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    """The payload in frames of the size that every server takes; the flags are the last one's."""
    parts = [payload[at : at + DEFAULT_FRAME] for at in range(0, len(payload), DEFAULT_FRAME)] or [b""]
    return b"".join(
        frame(Kind.DATA, stream_id, part, flags if at == len(parts) - 1 else 0) for at, part in enumerate(parts)
    )


def call(stream_id: int, body: bytes = b"good", method: str = "Unary") -> bytes:
    """A whole request with one message."""
    return opening(stream_id, method) + data(stream_id, message(body), END_STREAM)
