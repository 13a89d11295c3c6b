"""How much may a server send? No more than its client has room for: RFC 9113 sections 5.2 and 6.9."""

import pytest

from tests.transport.hostile import Client, connected
from tests.transport.hostile_server import MEGABYTE, Attacked, gushed, victim
from tests.transport.hostile_wire import (
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_STREAM,
    LARGEST_WINDOW,
    Setting,
    data,
    message,
    opening,
    reset,
    settings,
    window_update,
)

__all__ = ["victim"]

_PREFIX = 5


def _gush(stream_id: int, length: int) -> bytes:
    """Ask for an answer of so many octets."""
    return opening(stream_id, "Gush") + data(stream_id, message(str(length).encode()), END_STREAM)


def _initial_window(size: int) -> bytes:
    return settings((Setting.INITIAL_WINDOW_SIZE, size))


async def _came(client: Client, stream_id: int = 1) -> int:
    """How much of the answer is there when the server has nothing more to say for now."""
    await client.settle()
    return len(client.streams[stream_id].body)


async def test_a_window_of_0_holds_the_answer_until_it_is_opened(victim: Attacked) -> None:
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(_gush(1, 1000))
        await client.until(lambda: client.streams[1].heads)
        assert await _came(client) == 0
        await client.send(window_update(1, 2000))
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].messages == [gushed(1000)]


async def test_a_window_of_one_octet_at_a_time_is_obeyed(victim: Attacked) -> None:
    length = 200
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 1})
        await client.send(_gush(1, length))
        for count in range(1, length + _PREFIX):
            assert await _came(client) == count
            await client.send(window_update(1, 1))
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].messages == [gushed(length)]


async def test_settings_change_the_windows_of_streams_that_are_open(victim: Attacked) -> None:
    """Section 6.9.2: by the difference, below 0 too; what is below 0 must be filled before anything passes."""
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 1000})
        await client.send(_gush(1, 10_000))
        assert await _came(client) == 1000
        await client.send(_initial_window(100))  # -900
        await client.send(window_update(1, 900))
        assert await _came(client) == 1000
        await client.send(window_update(1, 1))
        assert await _came(client) == 1001
        await client.send(_initial_window(0))  # -100
        await client.send(_initial_window(99))  # -1
        assert await _came(client) == 1001
        await client.send(_initial_window(150))
        assert await _came(client) == 1051
        await client.send(_initial_window(150) + _initial_window(0) + _initial_window(150))
        assert await _came(client) == 1051
        await client.send(_gush(3, 10_000))
        assert await _came(client, 3) == 150
        await client.send(_initial_window(LARGEST_WINDOW))
        await client.until(lambda: client.streams[1].over and client.streams[3].over)
        assert [client.streams[n].messages for n in (1, 3)] == [[gushed(10_000)]] * 2


async def test_settings_do_not_change_the_window_of_the_connection(victim: Attacked) -> None:
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 10}, window=0)
        await client.send(_gush(1, 100_000))
        assert await _came(client) == 10
        await client.send(_initial_window(LARGEST_WINDOW))
        assert await _came(client) == DEFAULT_WINDOW
        await client.send(window_update(0, 1))
        assert await _came(client) == DEFAULT_WINDOW + 1
        await client.send(window_update(0, 100_000))
        await client.until(lambda: client.streams[1].over)


async def test_one_stream_takes_the_window_of_the_connection_and_the_others_go_on_when_it_opens(
    victim: Attacked,
) -> None:
    others = range(3, 23, 2)
    async with connected(victim.path) as client:
        await client.greet(window=0)
        await client.send(_gush(1, 10 * DEFAULT_WINDOW))
        assert await _came(client) == DEFAULT_WINDOW
        await client.send(*(_gush(number, 1000) for number in others))
        assert [await _came(client, number) for number in others] == [0] * len(others)
        # What needs no window passes: an answer without a message.
        await client.send(opening(101, "Nothing") + opening(103) + data(103, b"", END_STREAM))
        await client.until(lambda: client.streams[101].over and client.streams[103].over)
        granted = DEFAULT_WINDOW
        while not all(client.streams[number].over for number in (1, *others)):
            await client.send(window_update(0, 10_000))
            granted += 10_000
            await client.settle()
            assert sum(len(reply.body) for reply in client.streams.values()) <= granted
        assert client.streams[1].messages == [gushed(10 * DEFAULT_WINDOW)]
        assert [client.streams[number].messages for number in others] == [[gushed(1000)]] * len(others)


async def test_a_reset_stream_holds_nothing_that_the_others_need(victim: Attacked) -> None:
    """Its window of the connection was spent, but what waits for it is thrown away."""
    async with connected(victim.path) as client:
        await client.greet(window=0)
        await client.send(_gush(1, 10 * DEFAULT_WINDOW) + _gush(3, 1000))
        assert await _came(client) == DEFAULT_WINDOW
        await client.send(reset(1) + window_update(0, 1000 + _PREFIX))
        await client.until(lambda: client.streams[3].over)
        assert client.streams[3].messages == [gushed(1000)]
        assert len(client.streams[1].body) == DEFAULT_WINDOW


@pytest.mark.parametrize("most", [DEFAULT_FRAME, 50_000, 2**24 - 1])
async def test_an_answer_far_larger_than_the_windows_arrives_whole(victim: Attacked, most: int) -> None:
    length = 5 * MEGABYTE
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 70_000, Setting.MAX_FRAME_SIZE: most}, window=100_000)
        await client.send(_gush(1, length) + _gush(3, length))
        seen = {0: 0, 1: 0, 3: 0}
        while not (client.streams[1].over and client.streams[3].over):
            assert await client.read()
            came = {number: len(client.streams[number].body) for number in (1, 3)}
            for number, count in [*came.items(), (0, sum(came.values()))]:
                assert count - seen[number] <= (70_000 if number else 100_000)
                if count > seen[number]:
                    await client.send(window_update(number, count - seen[number]))
                    seen[number] = count
        assert [client.streams[number].messages for number in (1, 3)] == [[gushed(length)]] * 2


@pytest.mark.parametrize("method", ["Echo", "Gush"])
async def test_a_client_that_never_opens_its_windows_is_stopped_and_its_handler_ends_with_it(
    victim: Attacked, method: str
) -> None:
    """What the server has taken and not answered is what it holds."""
    piece = message(bytes(10_000) if method == "Echo" else b"10000")
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 0})
        await client.send(opening(1, method))
        taken = 0
        while taken < 64 * MEGABYTE and await client.pour(1, piece) == len(piece):
            taken += 10_000
            # Of what is small, the window does not tell how much is read.
            if method == "Gush" and victim.read < taken // 10_000 * 5:
                break
        await client.settle()
        assert victim.read // (len(piece) - _PREFIX) * 10_000 <= 4 * MEGABYTE
        assert taken <= 4 * MEGABYTE or method == "Gush"
        assert not client.streams[1].over
    await victim.idle()
    assert victim.cancelled == 1


async def test_many_calls_of_a_client_that_never_opens_its_windows_are_stopped(victim: Attacked) -> None:
    """Each answer waits: there is a bound to what all of them hold together."""
    most, whole = 24, message(bytes(8 * MEGABYTE))
    async with connected(victim.path) as client:
        await client.greet({Setting.INITIAL_WINDOW_SIZE: 0})
        for number in range(1, 2 * most, 2):
            await client.send(opening(number, "Unary"))
            if await client.pour(number, whole, END_STREAM) < len(whole) or client.streams[number].over:
                break
        await client.settle()
        assert victim.started < most, f"{victim.read} octets are held for one client"
