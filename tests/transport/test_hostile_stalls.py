"""What if a client begins and does not go on? Others are served, and a server that stops does not wait for it."""

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.transport.hostile import connected, greeted, turned
from tests.transport.hostile_server import MEGABYTE, Attacked, attacked, victim
from tests.transport.hostile_wire import (
    END_HEADERS,
    END_STREAM,
    LARGEST_WINDOW,
    PREFACE,
    Kind,
    Setting,
    block,
    call,
    data,
    frame,
    frame_head,
    message,
    opening,
    request_fields,
    settings,
    window_update,
)

__all__ = ["victim"]

_GREETING = PREFACE + settings()
_WIDE = PREFACE + settings((Setting.INITIAL_WINDOW_SIZE, LARGEST_WINDOW)) + window_update(0, LARGEST_WINDOW - 65_535)
_GUSH = message(str(8 * MEGABYTE).encode())

STALLS = {
    "nothing": b"",
    "one octet": PREFACE[:1],
    "half a preface": PREFACE[:12],
    "a preface": PREFACE,
    "half a frame's head": PREFACE + settings()[:4],
    "no acknowledgement": _GREETING,
    "half a frame": _GREETING + frame_head(Kind.PING, 0, 8) + b"1234",
    "half a frame of a stream": _GREETING + frame_head(Kind.HEADERS, 1, 100, END_HEADERS) + b"\x20",
    "half a field block": _GREETING + frame(Kind.HEADERS, 1, block(request_fields("Unary"))[:20]),
    "an answer that finds no window": PREFACE + settings((Setting.INITIAL_WINDOW_SIZE, 0)) + call(1),
    "an answer that is not read": _WIDE + opening(1, "Gush") + data(1, _GUSH, END_STREAM),
    "a connection error that is not read": _WIDE + opening(1, "Gush") + data(1, _GUSH, END_STREAM) + frame(Kind.DATA),
}


@pytest.mark.parametrize("name", STALLS)
async def test_a_client_that_does_not_go_on_delays_nobody(tmp_path: Path, name: str) -> None:
    """Neither others nor the stop, for which a grace of minutes is given here."""
    async with AsyncExitStack() as clients:
        async with attacked(tmp_path / "s.sock") as victim:
            client = await clients.enter_async_context(connected(victim.path))
            await client.send_apart(STALLS[name], [])
            await victim.idle()
        await client.until_end_or()


@pytest.mark.parametrize("name", STALLS)
async def test_a_client_that_goes_leaves_nothing(victim: Attacked, name: str) -> None:
    for _ in range(10):
        async with connected(victim.path) as client:
            await client.send_apart(STALLS[name], [])


@pytest.mark.parametrize("method", ["Echo", "Deaf", "Sink", "Slow"])
async def test_calls_end_with_the_connection(victim: Attacked, method: str) -> None:
    count = 50
    ended = END_STREAM if method == "Slow" else 0
    async with greeted(victim.path) as client:
        for number in range(1, 2 * count, 2):
            await client.send(opening(number, method) + data(number, message(b"x"), ended))
        assert await client.echo()
        await turned(lambda: victim.running == count)
    await victim.idle()
    assert victim.cancelled == count
    assert victim.errors == []


async def test_a_connection_error_ends_all_its_calls_and_no_others(victim: Attacked) -> None:
    async with greeted(victim.path) as other:
        await other.send(opening(1, "Slow") + data(1, message(b"other"), END_STREAM))
        async with greeted(victim.path) as client:
            await client.send(b"".join(opening(number, "Deaf") for number in range(1, 21, 2)))
            assert await client.echo()
            await turned(lambda: victim.running == 11)
            assert not await client.echo(frame(Kind.DATA))
            await turned(lambda: victim.running == 1)
        victim.gate.set()
        await other.until(lambda: other.streams[1].over)
        assert other.streams[1].messages == [b"other"]
