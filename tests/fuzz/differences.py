"""Where may our server and the h2 package differ, and which of the two does the RFC side with? RFC 9113 unless said.

A case is one frame that one side took and the other did not. Whatever is in neither table must get the same answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transport import frame
from transport.frame import FrameType

_NO_FIELDS: tuple[tuple[bytes, bytes], ...] = ()
_REQUIRED = (b":method", b":scheme")
_ALTSVC = 0xA
_OF_STREAMS = (FrameType.DATA, FrameType.HEADERS, FrameType.CONTINUATION)
_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Case:
    """A frame, and what is known of it: the highest stream that the client has opened, and those still open."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    highest: int
    live: frozenset[int]
    error: str = ""
    """What h2 said, when it refused."""
    fields: tuple[tuple[bytes, bytes], ...] = _NO_FIELDS
    """What h2 read, when it did not."""
    trailers: bool = False
    expected: int | None = None
    """Octets of body that a content-length still promises."""
    reset: bool = False
    """Whether both sides have reset the stream."""

    @property
    def idle(self) -> bool:
        return self.stream_id > self.highest or self.stream_id % 2 == 0

    @property
    def padding(self) -> int | None:
        padded = self.kind in (FrameType.HEADERS, FrameType.DATA) and self.flags & frame.PADDED and self.payload
        return self.payload[0] if padded else None

    @property
    def increment(self) -> int | None:
        if self.kind != FrameType.WINDOW_UPDATE or len(self.payload) != 4:
            return None
        return int.from_bytes(self.payload, "big")

    def count(self, name: bytes) -> int:
        return sum(each == name for each, _ in self.fields)

    def value(self, name: bytes) -> bytes | None:
        return dict(reversed(self.fields)).get(name)


def _pads_over_priority(case: Case) -> bool:
    left = len(case.payload) - 1 - (case.padding or 0)
    return bool(case.flags & frame.PRIORITY) and case.padding is not None and left < frame.PRIORITY_OCTETS


def _promised_too_much(case: Case) -> bool:
    ended = case.flags & frame.END_STREAM
    if case.trailers:
        return bool(case.expected)
    value = case.value(b"content-length")
    return bool(ended and value is not None and int(value))


def _overridden(case: Case) -> bool:
    """Of a setting that is there twice, h2 looks at the last value only."""
    entries = [case.payload[at : at + 2] for at in range(0, len(case.payload), 6)]
    return case.kind == FrameType.SETTINGS and len(set(entries)) < len(entries)


def _connects(case: Case) -> bool:
    error = case.kind == FrameType.SETTINGS and "Setting 8" in case.error
    return error and len(case.payload) % 6 == 0


ONLY_H2_REFUSES: Mapping[str, Callable[[Case], bool]] = {
    "5.3.2: priorities are ignored, also of a stream that depends on itself": lambda case: (
        "may not depend on itself" in case.error
    ),
    "8.3.1: a request without :authority and host, or with two that differ, is for the handler": lambda case: (
        "ost header" in case.error
    ),
    "5.1: an increment of 0 for a closed stream is not looked at": lambda case: (
        case.increment == 0 and not case.idle and case.stream_id not in case.live
    ),
    "5.1: what comes for a stream that was reset is dropped; h2 says again that it was": lambda case: (
        case.reset and not case.error and case.kind in _OF_STREAMS
    ),
    "5.1: the same, when there are as many streams as may be: h2 counts it as one more": lambda case: (
        case.reset and "TooManyStreamsError" in case.error
    ),
    "5.1: the padding of DATA that is dropped is not looked at": lambda case: (
        case.reset and case.kind == FrameType.DATA and bool(case.flags & frame.PADDED)
    ),
    "6.9: the reserved bit of an increment is ignored": lambda case: (case.increment or 0) > frame.STREAM_MASK,
    "6.2: padding may fill a HEADERS frame": lambda case: (
        case.kind == FrameType.HEADERS and case.padding == len(case.payload) - 1
    ),
    "8.1: te and content-length of trailers mean nothing": lambda case: (
        case.trailers and ("TE header" in case.error or "content-length" in case.error)
    ),
    "RFC 7838 section 4: a server ignores ALTSVC": lambda case: case.kind == _ALTSVC,
    "RFC 8441 section 3: a setting for clients": _connects,
}

ONLY_OURS_REFUSES: Mapping[str, Callable[[Case], bool]] = {
    "6.4: RST_STREAM of an idle stream": lambda case: case.kind == FrameType.RST_STREAM and case.idle,
    "8.4: PUSH_PROMISE, before its block is whole": lambda case: case.kind == FrameType.PUSH_PROMISE,
    "5.1.1: HEADERS on an even stream, before its block is whole": lambda case: (
        case.kind == FrameType.HEADERS and case.stream_id % 2 == 0 and not case.flags & frame.END_HEADERS
    ),
    "6.5.3: every value of a SETTINGS counts, in its order": _overridden,
    "6.2: padding that leaves no room for the priority": _pads_over_priority,
    "8.3: a cookie before the pseudo-header fields; h2 moves it before it looks": lambda case: (
        case.count(b"cookie") > 0
    ),
    "8.3.1: an empty :method or :scheme": lambda case: any(case.value(name) == b"" for name in _REQUIRED),
    "RFC 8441 section 3: :protocol, which was not offered": lambda case: case.count(b":protocol") > 0,
    "8.5: CONNECT without :authority": lambda case: (
        case.value(b":method") == b"CONNECT" and not case.value(b":authority")
    ),
    "8.1.1: te or content-length twice": lambda case: case.count(b"te") > 1 or case.count(b"content-length") > 1,
    "8.1.1: a content-length beyond all sizes": lambda case: len(case.value(b"content-length") or b"") > _MOST_DIGITS,
    "8.1.1: the request ends before its content-length is reached": _promised_too_much,
}


def named(table: Mapping[str, Callable[[Case], bool]], case: Case) -> str:
    """The first difference in the table that the case is one of. It must be one."""
    found = next((name for name, applies in table.items() if applies(case)), None)
    assert found is not None, case
    return found
