"""The contract of the seam, under pressure: who does not read stops whoever writes to him, and nobody else."""

import asyncio

import pytest

from tests.transport.client import Call
from tests.transport.servers import MEGABYTE, Serving, echo_all, service
from tests.transport.waiting import still, until
from transport.service import Stream

PIECE = b"x" * 65_536
# Far more than any bound.
COUNT = 800
# What may be under way in one direction of a call: windows, buffers of both sides, and what grpcio adds.
BOUND = 8 * MEGABYTE


async def test_a_handler_whose_client_does_not_read_is_stopped_in_its_next_read(server: Serving) -> None:
    taken = 0

    async def answering(stream: Stream) -> None:
        nonlocal taken
        while await stream.read() is not None:
            taken += 1
            stream.write(PIECE)

    async with server(service(stream=answering)) as served, served.another_client() as other:
        call = served.client.stream()
        asking = asyncio.create_task(_send(call, [b"x"] * COUNT))
        assert await still(lambda: taken, other) * len(PIECE) <= BOUND
        for _ in range(COUNT):
            assert await call.receive() == PIECE
        await asking
        await call.end()
        assert await call.receive() is None
    assert served.errors == []


async def _send(call: Call, messages: list[bytes]) -> None:
    for message in messages:
        await call.send(message)


async def test_a_client_whose_handler_does_not_read_is_stopped(server: Serving) -> None:
    reads = asyncio.Event()
    total = 0

    async def late(stream: Stream) -> None:
        nonlocal total
        await reads.wait()
        while (message := await stream.read()) is not None:
            total += len(message)

    accepted = 0

    async with server(service(stream=late)) as served, served.another_client() as other:
        call = served.client.stream()

        async def sending() -> None:
            nonlocal accepted
            for _ in range(COUNT):
                await call.send(PIECE)
                accepted += 1
            await call.end()

        task = asyncio.create_task(sending())
        assert await still(lambda: accepted, other) * len(PIECE) <= BOUND
        reads.set()
        await task
        assert await call.receive_all() == []
    assert total == COUNT * len(PIECE)
    assert served.errors == []


@pytest.mark.parametrize("who", ["client", "handler"])
async def test_who_does_not_read_stops_no_other_call_of_the_connection(server: Serving, who: str) -> None:
    async def deaf(stream: Stream) -> None:
        if await stream.read() == b"deaf":
            await asyncio.Event().wait()
        await echo_all(stream)

    async with server(service(stream=deaf)) as served, served.another_client() as other:
        stuck = [served.client.stream() for _ in range(5)]
        counts = [0] * len(stuck)

        async def sending(number: int) -> None:
            await stuck[number].send(b"deaf" if who == "handler" else b"mute")
            while True:
                await stuck[number].send(PIECE)
                counts[number] += 1

        tasks = [asyncio.create_task(sending(number)) for number in range(len(stuck))]
        assert await still(lambda: sum(counts), other) > 0
        call = served.client.stream()
        await call.send(b"go")
        for message in (b"x", PIECE, b"y" * MEGABYTE):
            assert await call.exchange(message) == message
        assert await served.client.unary(b"z" * MEGABYTE) == b"z" * MEGABYTE
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert served.errors == []


async def test_a_client_that_reads_late_gets_all_in_order(server: Serving) -> None:
    """The answers are larger than any window, and the call has already ended for its handler."""
    answers = [str(number).encode() * 10_000 for number in range(300)]
    written = asyncio.Event()

    async def talking(stream: Stream) -> None:
        await stream.read()
        for answer in answers:
            stream.write(answer)
        written.set()

    async with server(service(stream=talking)) as served, served.another_client() as other:
        call = served.client.stream()
        await call.send(b"x")
        await until(written.is_set, other)
        assert await call.receive_all() == answers
    assert served.errors == []
