"""How much may a client send? No more than the server has room for: RFC 9113 sections 5.2 and 6.9."""

import pytest

from tests.transport.hostile import Client, greeted
from tests.transport.hostile_outcome import Closed, Passed, Reset, case, holds
from tests.transport.hostile_server import MEGABYTE, Attacked, victim
from tests.transport.hostile_wire import (
    DEFAULT_WINDOW,
    END_STREAM,
    PADDED,
    Code,
    Kind,
    Setting,
    data,
    frame,
    message,
    opening,
    reset,
)

__all__ = ["victim"]

_PREFIX = 5


async def test_what_a_handler_reads_opens_the_windows_again(victim: Attacked) -> None:
    """50 MiB through one stream, in messages of 1 MiB."""
    count = 50
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Sink"))
        for _ in range(count):
            assert await client.pour(1, message(bytes(MEGABYTE))) == MEGABYTE + _PREFIX
        await client.send(data(1, b"", END_STREAM))
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].messages == [str(count * MEGABYTE).encode()]
        # No more was given back than was taken.
        assert client.room(1) <= client.settings[Setting.INITIAL_WINDOW_SIZE]


async def test_padding_is_counted_and_given_back(victim: Attacked) -> None:
    """8 MiB, of which the larger part is padding."""
    part, count = b"\xff" + message(b"x" * 200) + bytes(255), 16_384
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Sink"))
        for _ in range(count):
            if client.room(1) < len(part):
                await client.until(lambda: client.room(1) >= len(part))
            client.spent[0] += len(part)
            client.spent[1] += len(part)
            await client.send(frame(Kind.DATA, 1, part, PADDED))
        await client.send(data(1, b"", END_STREAM))
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].messages == [str(count * 200).encode()]
        assert client.room(1) <= client.settings[Setting.INITIAL_WINDOW_SIZE]


@pytest.mark.parametrize("size", [0, 1, 1_000, 100_000, MEGABYTE])
async def test_a_handler_that_does_not_read_stops_its_client_and_no_other(victim: Attacked, size: int) -> None:
    """Whatever the size of messages: what is held is bounded, and comes with the messages' own cost in memory."""
    piece = message(bytes(size)) * max(1, 1_000 // (size + _PREFIX))
    most, taken = 64 * MEGABYTE if size > 1 else 8 * MEGABYTE, 0
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Deaf"))
        while taken < most and (sent := await client.pour(1, piece)):
            taken += sent
        assert taken <= 4 * MEGABYTE
        await client.is_good(3)
        victim.gate.set()
        rest = -taken % len(piece)
        await client.pour(1, piece[len(piece) - rest :])
        await client.send(data(1, b"", END_STREAM))
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].grpc_status == 0
        assert victim.read == (taken + rest) // (size + _PREFIX) * size + len(b"good")


async def _beyond_the_stream(client: Client) -> bytes:
    return opening(1, "Deaf") + data(1, message(bytes(1_000)) * (client.room(1) // 1_005 + 1))


async def _beyond_the_stream_by_padding(client: Client) -> bytes:
    part = frame(Kind.DATA, 1, b"\xff" + message(b"") + bytes(255), PADDED)
    return opening(1, "Deaf") + part * (client.room(1) // (len(part) - 9) + 1)


async def _all_of_the_stream(client: Client) -> bytes:
    return opening(1, "Deaf") + data(1, message(b"x") * (client.room(1) // 6)) + data(1, b"")


async def _beyond_the_connection(client: Client) -> bytes:
    """Streams whose handlers read nothing, each filled, until the connection's window is exceeded."""
    of_stream, of_connection = client.room(1), DEFAULT_WINDOW + client.granted[0]
    filled = message(bytes(1_000)) * (of_stream // 1_005)
    return b"".join(opening(n, "Deaf") + data(n, filled) for n in range(1, 2 * (of_connection // len(filled) + 2), 2))


async def test_more_than_the_window_of_a_stream_ends_the_stream(victim: Attacked) -> None:
    """The others are not at fault."""
    await holds(victim, case(_beyond_the_stream, Reset(Code.FLOW_CONTROL_ERROR)))


async def test_all_of_the_window_of_a_stream_may_be_used(victim: Attacked) -> None:
    await holds(victim, case(_all_of_the_stream, Passed()))


async def test_padding_alone_fills_a_window(victim: Attacked) -> None:
    """A server may give back what is padding at once, before anybody reads: then nothing is exceeded."""
    await holds(victim, case(_beyond_the_stream_by_padding, Reset(Code.FLOW_CONTROL_ERROR), Passed()))


async def test_more_than_the_window_of_the_connection_ends_it(victim: Attacked) -> None:
    await holds(victim, case(_beyond_the_connection, Closed(Code.FLOW_CONTROL_ERROR)))


_ENDED = {
    "malformed": lambda number: opening(number, "Echo", x=b"\n"),
    "refused": lambda number: opening(number, "Nothing"),
    "unread": lambda number: opening(number, "Deaf"),
    "half a request": lambda number: opening(number, "Unary"),
    "failed": lambda number: opening(number, "Echo") + data(number, b"\2"),
}


@pytest.mark.parametrize("how", _ENDED)
async def test_what_ended_streams_have_brought_is_given_back_to_the_connection(victim: Attacked, how: str) -> None:
    """Otherwise the connection would stand still after so many."""
    async with greeted(victim.path) as client:
        window = DEFAULT_WINDOW + client.granted[0]
        whole = message(bytes(200_000))
        for number in range(1, 2 * (2 * window // len(whole)), 2):
            await client.send(_ENDED[how](number))
            assert await client.pour(number, whole) == len(whole)
            assert await client.echo()
            await client.send(reset(number))
        await client.is_good(10_001)
