"""What does a frame do that the state of its stream forbids? RFC 9113 sections 5.1, 6.2 and 6.10."""

import pytest

from tests.transport.hostile import Client, greeted, turned
from tests.transport.hostile_outcome import Attack, Closed, Passed, Reset, case, holds
from tests.transport.hostile_server import Attacked, victim
from tests.transport.hostile_wire import (
    END_HEADERS,
    END_STREAM,
    Code,
    Kind,
    Setting,
    block,
    call,
    data,
    frame,
    headers,
    message,
    opening,
    request_fields,
    reset,
    settings,
    u32,
    window_update,
)

__all__ = ["victim"]

_BLOCK = block(request_fields("Echo"))
_PROTOCOL, _CLOSED = Closed(Code.PROTOCOL_ERROR), Closed(Code.STREAM_CLOSED)
_OPEN = opening(1)
# Its handler still runs when the client has ended its side.
_HALF_CLOSED = opening(1, "Deaf", END_HEADERS | END_STREAM)
_TRAILERS = headers(1, [(b"x-trailer", b"1")], END_HEADERS | END_STREAM)
_CONTINUED = frame(Kind.HEADERS, 1, _BLOCK[:5])
_END = frame(Kind.CONTINUATION, 1, _BLOCK[5:], END_HEADERS)
_LAST = 2**31 - 1
_TIGHT, _WIDE = settings((Setting.INITIAL_WINDOW_SIZE, 0)), settings((Setting.INITIAL_WINDOW_SIZE, 1000))

# Section 5.1, "idle": only HEADERS and PRIORITY may come. Streams with even numbers are the server's, and always idle.
IDLE = {
    f"{kind.name} on {stream_id}": case(opening(3) + frame(kind, stream_id, payload), _PROTOCOL)
    for kind, payload in {
        Kind.DATA: message(b"x"),
        Kind.RST_STREAM: u32(8),
        Kind.WINDOW_UPDATE: u32(1),
        Kind.CONTINUATION: _BLOCK,
    }.items()
    for stream_id in (2, 5, _LAST)
}

# Section 5.1.1. A lower number is one that was never used, but is closed by the higher one: either fault is there.
NUMBERS = {
    "even": case(opening(2), _PROTOCOL),
    "going down": case(opening(5) + opening(3), _PROTOCOL, _CLOSED),
    "going down from the end": case(opening(_LAST) + opening(1), _PROTOCOL, _CLOSED),
    "going down after an end": case(opening(5) + reset(5) + opening(3), _PROTOCOL, _CLOSED),
    "DATA going down": case(opening(5) + data(3, message(b"x")), _PROTOCOL, _CLOSED, Reset(Code.STREAM_CLOSED, 3)),
    "with gaps": case(opening(1) + opening(7) + opening(1001), Passed()),
    # It is closed, where these two are no fault.
    "WINDOW_UPDATE going down": case(opening(5) + window_update(3, 1), Passed()),
    "RST_STREAM going down": case(opening(5) + reset(3), Passed()),
}

# "half-closed (remote)": a stream error, other than for WINDOW_UPDATE, PRIORITY and RST_STREAM.
HALF_CLOSED = {
    "DATA": case(_HALF_CLOSED + data(1, message(b"x")), Reset(Code.STREAM_CLOSED)),
    "empty DATA": case(_HALF_CLOSED + data(1, b"", END_STREAM), Reset(Code.STREAM_CLOSED)),
    "HEADERS": case(_HALF_CLOSED + _OPEN, Reset(Code.STREAM_CLOSED)),
    "trailers": case(_HALF_CLOSED + _TRAILERS, Reset(Code.STREAM_CLOSED)),
    "DATA after DATA": case(
        opening(1, "Deaf") + data(1, message(b"x"), END_STREAM) + data(1, b"y"), Reset(Code.STREAM_CLOSED)
    ),
    "DATA after trailers": case(opening(1, "Deaf") + _TRAILERS + data(1, b"y"), Reset(Code.STREAM_CLOSED)),
    "WINDOW_UPDATE": case(_TIGHT + _HALF_CLOSED + window_update(1, 1) + _WIDE, Passed()),
    "RST_STREAM": case(_HALF_CLOSED + reset(1), Passed()),
    "CONTINUATION": case(_HALF_CLOSED + _END, _PROTOCOL),
}

# "closed": anything but PRIORITY MAY be a connection error, but need not be; DATA is a stream's (section 6.1). What the
# peer may have sent before it knew is none: WINDOW_UPDATE and RST_STREAM.
_ON_CLOSED = (Passed(), Reset(Code.STREAM_CLOSED), _CLOSED)


async def _answered(client: Client) -> None:
    await client.send(call(1))
    await client.until(lambda: client.streams[1].ended)


def _after_answer(sent: bytes) -> Attack:
    async def attack(client: Client) -> bytes:
        await _answered(client)
        return sent

    return attack


_LATE = {
    "DATA": data(1, message(b"x")),
    "HEADERS": _OPEN,
    "trailers": _TRAILERS,
}
_LATE_AND_LEGAL = {"WINDOW_UPDATE": window_update(1, 1), "RST_STREAM": reset(1), "RST_STREAM twice": reset(1) * 2}
CLOSED = {
    **{f"{name} after reset": case(_OPEN + reset(1) + sent, *_ON_CLOSED) for name, sent in _LATE.items()},
    **{f"{name} after reset": case(_OPEN + reset(1) + sent, Passed()) for name, sent in _LATE_AND_LEGAL.items()},
    **{f"{name} after the answer": case(_after_answer(sent), *_ON_CLOSED) for name, sent in _LATE.items()},
    **{f"{name} after the answer": case(_after_answer(sent), Passed()) for name, sent in _LATE_AND_LEGAL.items()},
    "CONTINUATION after reset": case(_OPEN + reset(1) + _END, _PROTOCOL),
}

# "An endpoint that sends a RST_STREAM could receive any type of frame", and must ignore it. The first is uppercase.
_BAD = headers(1, request_fields("Echo", {b"X": b"1"}))
RESET_BY_SERVER = {
    name: case(_BAD + sent, Reset(Code.PROTOCOL_ERROR))
    for name, sent in {
        **_LATE,
        **_LATE_AND_LEGAL,
        "padded DATA": frame(Kind.DATA, 1, b"\5" + bytes(5), 8),
        "HEADERS in two frames": _CONTINUED + _END,
        "much DATA": data(1, bytes(500_000)),
        "half a message": data(1, message(b"x")[:3], END_STREAM),
    }.items()
}

# Sections 4.3, 5.5, 6.2 and 6.10: nothing may come between, of whatever stream or type.
BETWEEN = {
    **{
        f"{kind.name} on {stream_id}": case(opening(3) + frame(Kind.HEADERS, 5, _BLOCK[:5]) + sent, _PROTOCOL)
        for stream_id in (0, 3, 5, 7)
        for kind, payload in {
            Kind.DATA: b"x",
            Kind.HEADERS: _BLOCK,
            Kind.PRIORITY: bytes(5),
            Kind.RST_STREAM: u32(8),
            Kind.SETTINGS: b"",
            Kind.PUSH_PROMISE: u32(2),
            Kind.PING: bytes(8),
            Kind.GOAWAY: bytes(8),
            Kind.WINDOW_UPDATE: u32(1),
            Kind.UNKNOWN: b"x",
        }.items()
        for sent in [frame(kind, stream_id, payload, END_HEADERS if kind is Kind.HEADERS else 0)]
    },
    "CONTINUATION of another": case(_OPEN + frame(Kind.HEADERS, 3, _BLOCK[:5]) + _END, _PROTOCOL),
    "PING after a CONTINUATION": case(
        _CONTINUED + frame(Kind.CONTINUATION, 1, _BLOCK[5:9]) + frame(Kind.PING, payload=bytes(8)), _PROTOCOL
    ),
    "PING in trailers": case(
        _OPEN + frame(Kind.HEADERS, 1, b"", END_STREAM) + frame(Kind.PING, payload=bytes(8)), _PROTOCOL
    ),
    "CONTINUATION without HEADERS": case(_OPEN + _END, _PROTOCOL),
    "CONTINUATION after the last": case(_CONTINUED + _END + _END, _PROTOCOL),
    "CONTINUATION on 0": case(_CONTINUED + frame(Kind.CONTINUATION, 0, _BLOCK[5:], END_HEADERS), _PROTOCOL),
    "nothing": case(_CONTINUED + _END, Passed()),
    "END_STREAM is of HEADERS only": case(
        _CONTINUED + frame(Kind.CONTINUATION, 1, _BLOCK[5:], END_HEADERS | END_STREAM) + data(1, message(b"x")),
        Passed(),
    ),
}


@pytest.mark.parametrize("name", IDLE)
async def test_an_idle_stream_begins_with_headers(victim: Attacked, name: str) -> None:
    await holds(victim, IDLE[name])


@pytest.mark.parametrize("name", NUMBERS)
async def test_numbers_of_streams_are_odd_and_go_up(victim: Attacked, name: str) -> None:
    await holds(victim, NUMBERS[name])


@pytest.mark.parametrize("name", HALF_CLOSED)
async def test_nothing_follows_the_end_of_a_stream(victim: Attacked, name: str) -> None:
    await holds(victim, HALF_CLOSED[name])


@pytest.mark.parametrize("name", CLOSED)
async def test_a_closed_stream_stays_closed(victim: Attacked, name: str) -> None:
    await holds(victim, CLOSED[name])


@pytest.mark.parametrize("name", RESET_BY_SERVER)
async def test_what_was_sent_before_a_reset_was_known_is_ignored(victim: Attacked, name: str) -> None:
    await holds(victim, RESET_BY_SERVER[name])


@pytest.mark.parametrize("name", BETWEEN)
async def test_nothing_comes_between_the_frames_of_a_field_block(victim: Attacked, name: str) -> None:
    await holds(victim, BETWEEN[name])


async def test_a_reset_reaches_the_handler(victim: Attacked) -> None:
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Deaf") + opening(3, "Slow") + data(3, message(b"x"), END_STREAM) + opening(5))
        assert await client.echo()
        assert victim.running == 3
        await client.send(reset(1) + reset(3) + reset(5))
        assert await client.echo()
        await victim.idle()
        assert victim.cancelled == 3
        assert not client.streams[1].heads
        assert not client.streams[3].heads
        await client.is_good(7)


@pytest.mark.parametrize("method", ["Nothing", "Unary", "Echo"])
@pytest.mark.parametrize("sent", [b"", message(b"x"), b"\2\0\0\0\0", b"\0\xff\xff\xff\xff"], ids=repr)
async def test_a_call_may_be_reset_before_it_was_looked_at(victim: Attacked, method: str, sent: bytes) -> None:
    """All in one piece: whatever the call would have come to, its stream is gone already."""
    async with greeted(victim.path) as client:
        await client.send(opening(1, method) + data(1, sent) + reset(1))
        assert await client.echo()
        await client.is_good(3)
    assert victim.errors == []


async def test_after_goaway_of_the_client_running_calls_finish(victim: Attacked) -> None:
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Slow") + data(1, message(b"slow"), END_STREAM) + opening(3))
        await client.send(frame(Kind.GOAWAY, payload=u32(0) + u32(Code.NO_ERROR) + b"a reason"))
        await client.send(data(3, message(b"still"), END_STREAM))
        assert await client.echo()
        victim.gate.set()
        await client.until(lambda: client.streams[1].over and client.streams[3].over)
        assert [client.streams[n].messages for n in (1, 3)] == [[b"slow"], [b"still"]]
        assert [client.streams[n].grpc_status for n in (1, 3)] == [0, 0]


async def test_no_more_streams_than_announced_and_each_that_ends_makes_room(victim: Attacked) -> None:
    async with greeted(victim.path) as client:
        most = client.settings[Setting.MAX_CONCURRENT_STREAMS]
        assert await client.echo(b"".join(opening(2 * at + 1, "Deaf") for at in range(most + 2)))
        await turned(lambda: victim.running == most)
        # PROTOCOL_ERROR is allowed as well (section 5.1.2), but tells the client that it must not try again.
        resets = {number: reply.code for number, reply in client.streams.items() if reply.over}
        assert resets == {2 * most + 1: Code.REFUSED_STREAM, 2 * most + 3: Code.REFUSED_STREAM}
        assert victim.most == most
        # A stream may be refused for as long as a handler is still at it that was cancelled.
        await client.send(reset(1))
        await turned(lambda: victim.running < most)
        await client.is_good(2 * most + 5)


async def test_what_was_sent_before_many_ends_were_known_is_ignored(victim: Attacked) -> None:
    """As many as may be open at once: nothing tells the client of them before it has sent all this."""
    async with greeted(victim.path) as client:
        most = client.settings[Setting.MAX_CONCURRENT_STREAMS]
        streams = range(1, 2 * most, 2)
        whole = b"".join(opening(number, "Nothing") for number in streams)
        whole += b"".join(data(number, b"x", END_STREAM) for number in streams)
        assert await client.echo(whole), client.goaway
        assert all(client.streams[number].grpc_status == 12 for number in streams)
        await client.is_good(2 * most + 1)
