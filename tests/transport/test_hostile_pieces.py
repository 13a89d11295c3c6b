"""Does it matter how the bytes of a legal call are cut?"""

import h2.config
import h2.connection
import pytest

from tests.transport.hostile import Client, connected
from tests.transport.hostile_server import Attacked, victim
from tests.transport.hostile_wire import (
    END_HEADERS,
    END_STREAM,
    Kind,
    block,
    data,
    frame,
    message,
    opening,
    request_fields,
    settings,
)

__all__ = ["victim"]

_FIRST = b"first" + bytes(range(256))
_SECOND = b""


def _unary() -> bytes:
    """As `h2` sends it, from the preface on: Huffman, the dynamic table, which no server has forbidden yet."""
    client = _h2_client()
    client.send_headers(1, list(request_fields("Unary", {b"x-long": b"value" * 5})))
    client.send_data(1, message(_FIRST), end_stream=True)
    return client.data_to_send()


def _exchange() -> bytes:
    """A stream of two messages that are cut and merged, in padded frames, under a window of a few octets."""
    client = _h2_client()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100_000})
    client.send_headers(1, list(request_fields("Echo")), priority_weight=16)
    both = message(_FIRST) + message(_SECOND)
    client.send_data(1, both[:7], pad_length=3)
    client.send_data(1, both[7:-2])
    client.ping(b"12345678")
    client.send_data(1, both[-2:], pad_length=0)
    client.increment_flow_control_window(1000)
    client.end_stream(1)
    return client.data_to_send()


def _continued() -> bytes:
    """A call whose field block comes in four frames, one of them empty, and which ends with trailers."""
    head = block(request_fields("Echo"))
    parts = [head[:1], head[1:30], b"", head[30:]]
    return (
        h2_greeting()
        + frame(Kind.HEADERS, 1, parts[0])
        + b"".join(frame(Kind.CONTINUATION, 1, part) for part in parts[1:-1])
        + frame(Kind.CONTINUATION, 1, parts[-1], END_HEADERS)
        + data(1, message(_FIRST) + message(_SECOND))
        + settings()
        + frame(Kind.HEADERS, 1, block([(b"x-trailer", b"1")]), END_HEADERS | END_STREAM)
    )


def _h2_client() -> h2.connection.H2Connection:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    return client


def h2_greeting() -> bytes:
    return _h2_client().data_to_send()


_CALLS = {"unary": (_unary(), [_FIRST]), "exchange": (_exchange(), [_FIRST, _SECOND])}
_CALLS["continued"] = (_continued(), [_FIRST, _SECOND])


async def _is_answered(client: Client, expected: list[bytes]) -> None:
    reply = client.streams[1]
    await client.until(lambda: reply.over and client.settings_acks)
    assert (reply.http_status, reply.messages, reply.grpc_status, reply.code) == (200, expected, 0, None)
    assert reply.heads[0][b"content-type"].startswith(b"application/grpc")
    assert client.goaway is None


@pytest.mark.parametrize("name", _CALLS)
async def test_a_call_may_be_cut_in_two_anywhere(victim: Attacked, name: str) -> None:
    whole, expected = _CALLS[name]
    for cut in range(1, len(whole)):
        async with connected(victim.path) as client:
            await client.send_apart(whole, [cut])
            await _is_answered(client, expected)
    assert victim.started == len(whole) - 1


@pytest.mark.parametrize("name", _CALLS)
async def test_a_call_may_come_byte_by_byte(victim: Attacked, name: str) -> None:
    whole, expected = _CALLS[name]
    async with connected(victim.path) as client:
        await client.send_apart(whole, range(1, len(whole)))
        await _is_answered(client, expected)


async def test_many_calls_come_in_one_piece(victim: Attacked) -> None:
    count = 200
    calls = b"".join(
        opening(number, "Unary") + data(number, message(str(number).encode()), END_STREAM)
        for number in range(1, 2 * count, 2)
    )
    async with connected(victim.path) as client:
        await client.send(h2_greeting() + calls)
        replies = [client.streams[number] for number in range(1, 2 * count, 2)]
        await client.until(lambda: all(reply.over for reply in replies))
        assert [reply.messages for reply in replies] == [[str(n).encode()] for n in range(1, 2 * count, 2)]
    assert victim.started == count
