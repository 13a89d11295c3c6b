"""The contract of the seam, for sizes: all up to the limit passes, all beyond it is refused and harms nobody."""

import asyncio

import grpc
import pytest

from tests.transport.servers import BODY_LIMIT, MEGABYTE, Serving
from transport.address import UnixAddress

# Around the length of a frame and of the first windows, RFC 9113 sections 4.2 and 6.9.2, less the 5 bytes of gRPC's
# prefix; and around what one byte more or less changes in the length of a varint of HPACK.
EDGES = [0, 1, 16_378, 16_379, 16_380, 32_763, 65_529, 65_530, 65_531, 65_535, 65_536, 131_072, MEGABYTE + 1]
TOO_LARGE = b"x" * (BODY_LIMIT + 2 * MEGABYTE)


async def test_messages_of_every_size_pass_both_ways(server: Serving) -> None:
    async with server() as served:
        call = served.client.stream()
        for size in EDGES:
            message = (str(size).encode() * size)[:size]
            assert await served.client.unary(message) == message
            assert await call.exchange(message) == message
    assert served.errors == []


async def test_messages_as_large_as_the_limit_pass_both_ways(server: Serving) -> None:
    message = bytes(range(256)) * (BODY_LIMIT // 256)
    async with server() as served:
        assert await served.client.unary(message) == message
        call = served.client.stream()
        assert await call.exchange(message) == message
        assert await call.exchange(b"x") == b"x"
    assert served.errors == []


async def test_several_large_messages_pass_at_once(server: Serving) -> None:
    async with server() as served:
        messages = [bytes([number]) * (4 * MEGABYTE) for number in range(4)]
        assert await asyncio.gather(*(served.client.unary(message) for message in messages)) == messages


async def test_a_unary_message_beyond_the_limit_is_refused_and_the_connection_goes_on(server: Serving) -> None:
    async with server() as served:
        running = served.client.stream()
        assert await running.exchange(b"x") == b"x"
        for _ in range(2):
            assert await served.client.start(TOO_LARGE).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await served.client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
            assert await running.exchange(b"still") == b"still"
    assert served.errors == []


async def test_a_message_beyond_the_limit_ends_its_stream_and_no_other(server: Serving) -> None:
    async with server() as served:
        running, call = served.client.stream(), served.client.stream()
        for stream in (running, call):
            assert await stream.exchange(b"x") == b"x"
        await call.send(TOO_LARGE)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await running.exchange(b"still") == b"still"
        assert await served.client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
    assert served.errors == []


@pytest.mark.parametrize("limit", [1024, BODY_LIMIT])
async def test_an_answer_in_line_comes_in_larger_messages_than_a_small_limit_on_requests(
    server: Serving, limit: int
) -> None:
    piece = b"x" * (2 * MEGABYTE + 1000)
    async with server(address=UnixAddress(path=server.path), max_body_bytes=limit) as served:
        assert await served.client.stream().exchange(piece) == piece


async def test_empty_messages_are_messages(server: Serving) -> None:
    async with server() as served:
        assert await served.client.unary(b"") == b""
        call = served.client.stream()
        for _ in range(1000):
            await call.send(b"")
        await call.end()
        assert await call.receive_all() == [b""] * 1000
    assert served.errors == []
