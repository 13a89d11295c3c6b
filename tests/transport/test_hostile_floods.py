"""Does a server stay up under what is legal, but far too much of it? RFC 9113 section 10.5, CVE-2019-9511 to 9518,
CVE-2023-44487, CVE-2024-27316.

A flood ends in ENHANCE_YOUR_CALM, or is put up with; all of it within the time that a test may take, and with the next
client served.
"""

import asyncio
from collections.abc import Callable

import pytest

from tests.transport.hostile import Client, connected, greeted, turned
from tests.transport.hostile_outcome import GOOD_STREAM
from tests.transport.hostile_server import MEGABYTE, Attacked, victim
from tests.transport.hostile_wire import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PADDED,
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
    window_update,
)

__all__ = ["victim"]

_MANY = 100_000
_OPEN = opening(1)
_BLOCK = block(request_fields("Echo"))
_PING = frame(Kind.PING, payload=bytes(8))
_GUSH = opening(1, "Gush") + data(1, message(b"200000"), END_STREAM)
# How many turns of the event loop a server gets to read on.
_TURNS = 200

FLOODS: dict[str, Callable[[], bytes]] = {
    "PING": lambda: _PING * _MANY,
    "PING with ACK": lambda: frame(Kind.PING, payload=bytes(8), flags=ACK) * _MANY,
    "SETTINGS": lambda: settings() * _MANY,
    "SETTINGS with ACK": lambda: frame(Kind.SETTINGS, flags=ACK) * _MANY,
    "SETTINGS that change": lambda: (
        (settings((Setting.INITIAL_WINDOW_SIZE, 1)) + settings((Setting.INITIAL_WINDOW_SIZE, 9))) * (_MANY // 2)
    ),
    "SETTINGS with many settings": lambda: settings(*[(0xABC, at) for at in range(2700)]) * 1_000,
    "empty DATA": lambda: _OPEN + data(1, b"") * _MANY,
    "DATA of padding": lambda: _OPEN + frame(Kind.DATA, 1, b"\3" + bytes(3), PADDED) * (_MANY // 8),
    "DATA on a stream that was reset": lambda: headers(1, [(b"X", b"")]) + data(1, b"") * _MANY,
    "DATA on a stream that was answered": lambda: opening(1, "Nothing") + data(1, b"") * _MANY,
    "PRIORITY": lambda: frame(Kind.PRIORITY, 1, bytes(5)) * _MANY,
    "PRIORITY of many streams": lambda: b"".join(frame(Kind.PRIORITY, 2 * at + 1, bytes(5)) for at in range(_MANY)),
    "WINDOW_UPDATE of the connection": lambda: window_update(0, 1) * _MANY,
    "WINDOW_UPDATE of a stream": lambda: _OPEN + window_update(1, 1) * _MANY,
    "WINDOW_UPDATE octet by octet": lambda: (
        settings((Setting.INITIAL_WINDOW_SIZE, 0)) + _GUSH + window_update(1, 1) * _MANY
    ),
    "WINDOW_UPDATE of a closed stream": lambda: _OPEN + reset(1) + window_update(1, 1) * _MANY,
    "RST_STREAM of a closed stream": lambda: _OPEN + reset(1) * _MANY,
    "GOAWAY": lambda: frame(Kind.GOAWAY, payload=bytes(8)) * _MANY,
    "unknown": lambda: frame(Kind.UNKNOWN, payload=b"x") * _MANY,
    "unknown on a stream": lambda: _OPEN + frame(Kind.UNKNOWN, 1) * _MANY,
    "malformed requests": lambda: b"".join(headers(2 * at + 1, [(b"X", b"")]) for at in range(_MANY // 4)),
    "calls of nothing": lambda: b"".join(opening(2 * at + 1, "Nothing") for at in range(_MANY // 4)),
    "calls of nothing that are reset": lambda: b"".join(
        opening(2 * at + 1, "Nothing") + reset(2 * at + 1) for at in range(_MANY // 4)
    ),
    "streams that fail": lambda: b"".join(
        opening(2 * at + 1) + data(2 * at + 1, b"\2\0\0\0\0") for at in range(_MANY // 4)
    ),
    "trailers of many streams": lambda: b"".join(
        opening(2 * at + 1) + frame(Kind.HEADERS, 2 * at + 1, b"", END_HEADERS | END_STREAM)
        for at in range(_MANY // 10)
    ),
}

# Of a block that never ends, nothing is decoded, but all must be kept: it cannot be put up with.
ENDLESS: dict[str, Callable[[], bytes]] = {
    "empty CONTINUATION": lambda: frame(Kind.HEADERS, 1, _BLOCK) + frame(Kind.CONTINUATION, 1) * _MANY,
    "CONTINUATION octet by octet": lambda: (
        frame(Kind.HEADERS, 1, _BLOCK) + frame(Kind.CONTINUATION, 1, b"\x20") * _MANY
    ),
    "CONTINUATION": lambda: frame(Kind.HEADERS, 1, _BLOCK) + frame(Kind.CONTINUATION, 1, b"\x88" * 16_384) * 2_000,
    "CONTINUATION of one value": lambda: (
        frame(Kind.HEADERS, 1, _BLOCK + b"\x00\x01a\x7f\xff\xff\xff\x3f")
        + frame(Kind.CONTINUATION, 1, b"x" * 16_384) * 2_000
    ),
    "CONTINUATION of trailers": lambda: (
        _OPEN + frame(Kind.HEADERS, 1, b"", END_STREAM) + frame(Kind.CONTINUATION, 1) * _MANY
    ),
}


async def _survives(client: Client, flood: bytes) -> None:
    """Put up with, or ended by a word."""
    if await client.echo(flood):
        await client.is_good(GOOD_STREAM)
    else:
        assert client.goaway is not None
        assert client.goaway.error_code == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_put_up_with_or_ended(victim: Attacked, name: str) -> None:
    async with connected(victim.path) as client:
        await client.greet({}, window=0)
        await _survives(client, FLOODS[name]())


@pytest.mark.parametrize("name", ENDLESS)
async def test_a_field_block_without_end_is_ended(victim: Attacked, name: str) -> None:
    async with greeted(victim.path) as client:
        assert not await client.echo(ENDLESS[name]())
        assert client.goaway is not None
        assert client.goaway.error_code in {Code.ENHANCE_YOUR_CALM, Code.PROTOCOL_ERROR, Code.COMPRESSION_ERROR}
    assert victim.started == 0


@pytest.mark.parametrize(
    ("method", "count"), [("Echo", _MANY), ("Deaf", 20_000), ("Stubborn", 20_000), ("Unary", 20_000)]
)
async def test_streams_that_are_reset_at_once_run_no_more_handlers_than_announced(
    victim: Attacked, method: str, count: int
) -> None:
    """Rapid reset. Handlers count for as long as they run, not for as long as their streams are open."""
    flood = b"".join(opening(2 * at + 1, method) + reset(2 * at + 1) for at in range(count))
    async with greeted(victim.path) as client:
        await _floods(client, flood)
        assert victim.most <= client.settings[Setting.MAX_CONCURRENT_STREAMS]
    victim.gate.set()


async def test_handlers_that_end_late_count_as_streams(victim: Attacked) -> None:
    """The same in steps: each handler has begun when its stream is reset."""
    step = 1_000
    async with greeted(victim.path) as client:
        most = client.settings[Setting.MAX_CONCURRENT_STREAMS]
        for first in range(0, 2 * most, step):
            streams = range(2 * first + 1, 2 * (first + step), 2)
            began = min(victim.started + step, most)
            if not await client.echo(b"".join(opening(n, "Stubborn") + data(n, message(b"x")) for n in streams)):
                break
            await _began(victim, began)
            if not await client.echo(b"".join(reset(n) for n in streams)):
                break
        assert victim.most <= most
        victim.gate.set()
        await victim.idle()
    assert victim.errors == [] or client.goaway is not None


async def _began(victim: Attacked, least: int) -> None:
    await turned(lambda: victim.started >= least)


async def _all_answered(client: Client, streams: range) -> None:
    await client.until(lambda: all(client.streams[number].body for number in streams))


async def _floods(client: Client, flood: bytes) -> None:
    if not await client.echo(flood):
        assert client.goaway is not None
        assert client.goaway.error_code == Code.ENHANCE_YOUR_CALM


async def test_a_client_that_resets_every_stream_when_it_was_answered_is_never_closed(victim: Attacked) -> None:
    """As Envoy does with ext_proc: it is done with a stream when it has the last answer that it needs."""
    count, step = 20_000, 200
    async with greeted(victim.path) as client:
        for first in range(0, count, step):
            streams = range(2 * first + 1, 2 * (first + step), 2)
            await client.send(b"".join(opening(n) + data(n, message(b"x")) for n in streams))
            await _all_answered(client, streams)
            assert await client.echo(b"".join(reset(n) for n in streams)), client.goaway
            client.streams.clear()
        await client.is_good(GOOD_STREAM)
    assert victim.started == count + 1


async def test_a_client_that_resets_streams_together_with_the_end_of_others_is_never_closed(victim: Attacked) -> None:
    """Its resets cross the answers: half of the streams have ended when they are reset."""
    count, step = 5_000, 200
    async with greeted(victim.path) as client:
        for first in range(0, count, step):
            streams = range(2 * first + 1, 2 * (first + step), 2)
            assert await client.echo(b"".join(call(n) for n in streams)), client.goaway
            assert await client.echo(b"".join(reset(n) for n in streams)), client.goaway
            client.streams.clear()
        await client.is_good(GOOD_STREAM)


_UNREAD: dict[str, Callable[[int], bytes]] = {
    "PING": lambda _: _PING * 100,
    "SETTINGS": lambda _: settings() * 100,
    "malformed requests": lambda number: headers(number, [(b"X", b"")]),
    "calls of nothing": lambda number: opening(number, "Nothing"),
    "calls": lambda number: call(number, bytes(200)),
    "large calls": lambda number: call(number, bytes(100_000)),
}


@pytest.mark.parametrize("name", _UNREAD)
async def test_a_client_that_never_reads_is_stopped(victim: Attacked, name: str) -> None:
    """What is sent back to it piles up: the server reads no more of it, or closes. In its windows is room enough."""
    async with greeted(victim.path) as client:
        most, sent, at = 64 * MEGABYTE, 0, 0
        while sent < most and await _taken(client, whole := _UNREAD[name](2 * at + 1)):
            sent, at = sent + len(whole), at + 1
        assert sent < most, "the server takes all, and holds what it answers"


async def _taken(client: Client, whole: bytes) -> bool:
    """Send without reading; whether the server still takes it."""
    at = turns = 0
    while at < len(whole) and turns < _TURNS:
        try:
            at += client.sock.send(whole[at:])
        except BlockingIOError:
            turns += 1
            await asyncio.sleep(0)
        except (BrokenPipeError, ConnectionResetError):
            return False
    return at == len(whole)


async def test_a_flood_does_not_keep_others_waiting(victim: Attacked) -> None:
    async with greeted(victim.path) as other, greeted(victim.path) as client:
        flooding = asyncio.ensure_future(client.echo(_PING * _MANY))
        for number in range(1, 21, 2):
            await other.is_good(number)
        await flooding
