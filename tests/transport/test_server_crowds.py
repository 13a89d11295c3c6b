"""The contract of the seam, for crowds: as many calls at once as Envoy makes, on as few connections."""

import asyncio
import contextlib

import grpc

from tests.transport.client import Call
from tests.transport.servers import NAME, Serving
from transport.service import Service, Stream

# Envoy opens up to 1,024 streams on one connection.
CROWD = 1_100
IDLE = 5_000
CONNECTIONS = 5


async def test_more_streams_than_envoy_opens_on_a_connection_run_interleaved(server: Serving) -> None:
    running = 0
    most = 0
    all_there = asyncio.Event()

    async def together(stream: Stream) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == CROWD:
            all_there.set()
        try:
            while (message := await stream.read()) is not None:
                # Nobody is answered before everybody is there: all run at once.
                await all_there.wait()
                stream.write(message)
        finally:
            running -= 1

    crowd = Service(name=NAME, unary={}, streams={"Stream": together})
    async with server(crowd) as served:
        calls = [served.client.stream() for _ in range(CROWD)]
        for number, call in enumerate(calls):
            await call.send(f"{number} a".encode())
        for number, call in enumerate(calls):
            await call.send(f"{number} b".encode())
        for letter in "ab":
            for number, call in enumerate(reversed(calls)):
                assert await call.receive() == f"{CROWD - 1 - number} {letter}".encode()
        await _end(calls)
    assert most == CROWD
    assert served.errors == []


async def _end(calls: list[Call]) -> None:
    for call in calls:
        await call.end()
    for call in calls:
        assert await call.receive() is None
        assert await call.code() is grpc.StatusCode.OK


async def test_thousands_of_idle_streams_still_answer(server: Serving) -> None:
    async with server() as served, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served.another_client()) for _ in range(CONNECTIONS)]
        calls = [clients[number % CONNECTIONS].stream() for number in range(IDLE)]
        for call in calls:
            await call.send(b"open")
        for call in calls:
            assert await call.receive() == b"open"
        for number, call in enumerate(reversed(calls)):
            assert await call.exchange(str(number).encode()) == str(number).encode()
        await _end(calls)
    assert served.errors == []


async def test_many_calls_come_and_go_on_one_connection(server: Serving) -> None:
    async with server() as served:
        for wave in range(20):
            messages = [f"{wave} {number}".encode() for number in range(100)]
            assert await asyncio.gather(*(served.client.unary(message) for message in messages)) == messages
    assert served.errors == []
