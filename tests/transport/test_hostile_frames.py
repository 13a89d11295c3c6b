"""What does a frame do that is illegal whatever went before? RFC 9113 sections 3.4, 4 and 6."""

import pytest

from tests.transport.hostile import Client, greeted
from tests.transport.hostile_outcome import Closed, Outcome, Passed, Reset, case, holds
from tests.transport.hostile_server import Attacked, victim
from tests.transport.hostile_wire import (
    ACK,
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    PADDED,
    PRIORITISED,
    Code,
    Kind,
    Setting,
    block,
    data,
    frame,
    frame_head,
    message,
    opening,
    request_fields,
    reset,
    settings,
    u32,
)

__all__ = ["victim"]

_OPEN = opening(1)
_BLOCK = block(request_fields("Echo"))
_PRIORITY = u32(0) + b"\x10"
_PROTOCOL, _SIZE, _FLOW = Closed(Code.PROTOCOL_ERROR), Closed(Code.FRAME_SIZE_ERROR), Closed(Code.FLOW_CONTROL_ERROR)
# In which states of the attack a frame of the type may come: on stream 0, and on an open one.
_PLACES = {
    0: {Kind.SETTINGS, Kind.PING, Kind.GOAWAY, Kind.WINDOW_UPDATE, Kind.UNKNOWN},
    1: {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.WINDOW_UPDATE, Kind.UNKNOWN},
}
# A size that no server announces.
_LARGEST_FRAME = 2**24 - 1

STREAM_ZERO = {
    kind.name: case(frame(kind, 0, payload), _PROTOCOL)
    for kind, payload in {
        Kind.DATA: b"x",
        Kind.HEADERS: _BLOCK,
        Kind.PRIORITY: _PRIORITY,
        Kind.RST_STREAM: u32(8),
        Kind.PUSH_PROMISE: u32(2) + _BLOCK,
        Kind.CONTINUATION: _BLOCK,
    }.items()
}

NO_STREAM = {
    f"{kind.name} on {where} stream": case(before + frame(kind, 1, payload), _PROTOCOL)
    for kind, payload in {Kind.SETTINGS: b"", Kind.PING: bytes(8), Kind.GOAWAY: bytes(8)}.items()
    for where, before in {"an open": _OPEN, "an idle": b""}.items()
}

LENGTHS = {
    **{f"PING of {n}": case(frame(Kind.PING, payload=bytes(n)), _SIZE) for n in (0, 7, 9)},
    **{f"RST_STREAM of {n}": case(_OPEN + frame(Kind.RST_STREAM, 1, bytes(n)), _SIZE) for n in (0, 3, 5)},
    **{f"SETTINGS of {n}": case(frame(Kind.SETTINGS, payload=bytes(n)), _SIZE) for n in (1, 5, 7)},
    **{f"GOAWAY of {n}": case(frame(Kind.GOAWAY, payload=bytes(n)), _SIZE) for n in (0, 7)},
    **{
        f"WINDOW_UPDATE of {n} on {stream_id}": case(_OPEN + frame(Kind.WINDOW_UPDATE, stream_id, b"\1" * n), _SIZE)
        for n in (0, 3, 5)
        for stream_id in (0, 1)
    },
    # A stream error (section 6.3) in a frame that section 5.3.2 deprecates.
    **{
        f"PRIORITY of {n}": case(_OPEN + frame(Kind.PRIORITY, 1, bytes(n)), Reset(Code.FRAME_SIZE_ERROR), _SIZE)
        for n in (0, 4, 6)
    },
    # The stream is idle, where a RST_STREAM would be illegal (section 6.4).
    "PRIORITY of 4 on an idle stream": case(frame(Kind.PRIORITY, 1, bytes(4)), _SIZE, Passed()),
    "SETTINGS with ACK and a payload": case(frame(Kind.SETTINGS, payload=bytes(6), flags=ACK), _SIZE),
    # Too small to contain mandatory frame data (section 4.2); of DATA, that is a stream's error.
    "HEADERS padded without a length": case(frame(Kind.HEADERS, 1, b"", END_HEADERS | PADDED), _SIZE, _PROTOCOL),
    "DATA padded without a length": case(
        _OPEN + frame(Kind.DATA, 1, b"", PADDED), Reset(Code.FRAME_SIZE_ERROR), _SIZE, _PROTOCOL
    ),
    "HEADERS with half a priority": case(frame(Kind.HEADERS, 1, bytes(4), END_HEADERS | PRIORITISED), _SIZE),
}

PADDING = {
    "DATA of its own length": case(_OPEN + frame(Kind.DATA, 1, b"\6" + bytes(5), PADDED), _PROTOCOL),
    "DATA beyond": case(_OPEN + frame(Kind.DATA, 1, b"\xff" + bytes(5), PADDED), _PROTOCOL),
    "HEADERS beyond": case(frame(Kind.HEADERS, 1, b"\xff" + _BLOCK, END_HEADERS | PADDED), _PROTOCOL),
    # Shorter than its frame, but nothing is left of what must be there (section 4.2).
    "HEADERS into the priority": case(
        frame(Kind.HEADERS, 1, b"\3" + _PRIORITY + b"\x82", END_HEADERS | PADDED | PRIORITISED), _PROTOCOL, _SIZE
    ),
    "DATA all padding": case(_OPEN + frame(Kind.DATA, 1, b"\5" + bytes(5), PADDED), Passed()),
    "HEADERS": case(frame(Kind.HEADERS, 1, b"\5" + _BLOCK + bytes(5), END_HEADERS | PADDED), Passed()),
    "HEADERS with a priority": case(
        frame(Kind.HEADERS, 1, b"\5" + _PRIORITY + _BLOCK + bytes(5), END_HEADERS | PADDED | PRIORITISED), Passed()
    ),
}

# Section 4.1: unknown types, unknown flags and the reserved bit are ignored.
IGNORED = {
    "unknown on the connection": case(frame(Kind.UNKNOWN, 0, b"x" * 100, 0xFF), Passed()),
    "unknown on an idle stream": case(frame(Kind.UNKNOWN, 1, b"x" * 100, 0xFF), Passed()),
    "unknown on an even stream": case(frame(Kind.UNKNOWN, 2, b"", 0xFF), Passed()),
    "unknown on an open stream": case(_OPEN + frame(Kind.UNKNOWN, 1, b"x" * 100, 0xFF), Passed()),
    "unknown on a reset stream": case(_OPEN + reset(1) + frame(Kind.UNKNOWN, 1, b"x", 0xFF), Passed()),
    "unknown of the largest size": case(frame(Kind.UNKNOWN, 1, bytes(DEFAULT_FRAME)), Passed()),
    "flags of HEADERS": case(opening(1, flags=END_HEADERS | 0xD2), Passed()),
    "flags of DATA": case(_OPEN + data(1, message(b"x"), 0xF6), Passed()),
    "flags of SETTINGS": case(frame(Kind.SETTINGS, flags=0xFE), Passed()),
    "flags of PING": case(frame(Kind.PING, payload=bytes(8), flags=0xFE), Passed()),
    "flags of RST_STREAM": case(_OPEN + frame(Kind.RST_STREAM, 1, u32(8), 0xFF), Passed()),
    "flags of WINDOW_UPDATE": case(
        settings((Setting.INITIAL_WINDOW_SIZE, 0))
        + _OPEN
        + frame(Kind.WINDOW_UPDATE, 1, u32(1), 0xFF)
        + settings((Setting.INITIAL_WINDOW_SIZE, 1000)),
        Passed(),
    ),
    "flags of PRIORITY": case(frame(Kind.PRIORITY, 1, _PRIORITY, 0xFF), Passed()),
    "the bit before a stream's number": case(opening(2**31 + 1) + data(2**31 + 1, message(b"x")), Passed()),
    "the bit before stream 0": case(frame(Kind.SETTINGS, 2**31), Passed()),
    "an unknown error code": case(_OPEN + reset(1, 0xFFFFFFFF), Passed()),
    "PING with ACK": case(frame(Kind.PING, payload=b"nobody's", flags=ACK), Passed()),
}

# Priority is deprecated (section 5.3.2). RFC 7540 made a stream that depends on itself a stream error; this RFC has no
# such rule.
PRIORITIES = {
    "idle": case(frame(Kind.PRIORITY, 99, _PRIORITY), Passed()),
    "even": case(frame(Kind.PRIORITY, 2, _PRIORITY), Passed()),
    "open": case(_OPEN + frame(Kind.PRIORITY, 1, _PRIORITY), Passed()),
    "half closed": case(opening(1, "Deaf", END_HEADERS | END_STREAM) + frame(Kind.PRIORITY, 1, _PRIORITY), Passed()),
    "closed": case(_OPEN + reset(1) + frame(Kind.PRIORITY, 1, _PRIORITY), Passed()),
    "of itself": case(_OPEN + frame(Kind.PRIORITY, 1, u32(1) + b"\x10"), Passed(), Reset(Code.PROTOCOL_ERROR)),
    "of itself in HEADERS": case(
        frame(Kind.HEADERS, 1, u32(1) + b"\x10" + _BLOCK, END_HEADERS | PRIORITISED),
        Passed(),
        Reset(Code.PROTOCOL_ERROR),
    ),
}


@pytest.mark.parametrize("name", STREAM_ZERO)
async def test_a_frame_of_a_stream_needs_one(victim: Attacked, name: str) -> None:
    await holds(victim, STREAM_ZERO[name])


@pytest.mark.parametrize("name", NO_STREAM)
async def test_a_frame_of_the_connection_has_no_stream(victim: Attacked, name: str) -> None:
    await holds(victim, NO_STREAM[name])


@pytest.mark.parametrize("name", LENGTHS)
async def test_a_frame_has_the_length_of_its_type(victim: Attacked, name: str) -> None:
    await holds(victim, LENGTHS[name])


@pytest.mark.parametrize("name", PADDING)
async def test_padding_is_shorter_than_its_frame(victim: Attacked, name: str) -> None:
    await holds(victim, PADDING[name])


@pytest.mark.parametrize("name", IGNORED)
async def test_what_nobody_has_defined_is_ignored(victim: Attacked, name: str) -> None:
    await holds(victim, IGNORED[name])


@pytest.mark.parametrize("name", PRIORITIES)
async def test_priority_changes_nothing(victim: Attacked, name: str) -> None:
    await holds(victim, PRIORITIES[name])


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("stream_id", [0, 1])
async def test_a_frame_is_no_larger_than_announced(victim: Attacked, kind: Kind, stream_id: int) -> None:
    """Section 4.2. A stream's error only where the frame can change nothing else."""

    async def too_large(client: Client) -> bytes:
        largest = client.settings.get(Setting.MAX_FRAME_SIZE, DEFAULT_FRAME)
        return _OPEN + frame(kind, stream_id, bytes(largest + 1), END_HEADERS)

    allowed: list[Outcome] = [_SIZE]
    if stream_id and kind in {Kind.DATA, Kind.PRIORITY, Kind.UNKNOWN}:
        allowed.append(Reset(Code.FRAME_SIZE_ERROR))
    if kind not in _PLACES[stream_id]:
        # Two faults at once: it is the wrong place, too.
        allowed.append(_PROTOCOL)
    await holds(victim, case(too_large, *allowed))


@pytest.mark.parametrize("kind", [Kind.HEADERS, Kind.SETTINGS, Kind.PING], ids=lambda kind: kind.name)
async def test_what_is_too_large_is_refused_before_it_comes(victim: Attacked, kind: Kind) -> None:
    async with greeted(victim.path) as client:
        await client.send(frame_head(kind, int(kind is Kind.HEADERS), _LARGEST_FRAME))
        await client.until_end_or()
        assert client.goaway is not None
        assert client.goaway.error_code == Code.FRAME_SIZE_ERROR


@pytest.mark.parametrize("payload", [_BLOCK, u32(2) + _BLOCK, u32(3) + _BLOCK, b""], ids=["bare", "2", "3", "empty"])
@pytest.mark.parametrize("before", [b"", _OPEN], ids=["idle", "open"])
async def test_a_client_cannot_push(victim: Attacked, before: bytes, payload: bytes) -> None:
    """Section 8.4. Of an empty frame, its length is wrong as well."""
    attack = before + frame(Kind.PUSH_PROMISE, 1, payload, END_HEADERS)
    await holds(victim, case(attack, _PROTOCOL, *([] if payload else [_SIZE])))
