"""The contract of the seam, for the end of a server: who is served stays so for the grace, and nobody new is."""

import asyncio
import socket
from dataclasses import dataclass, field

import grpc
import pytest

from tests.transport.client import PATIENCE_SECONDS, Client
from tests.transport.handlers import WAITS, Fates
from tests.transport.servers import NAME, Served, Serving, echo_all, service
from tests.transport.waiting import until
from transport.service import Service, Stream

LONG_SECONDS = 600.0
# How grpcio's own server ends calls; a client must not take it for an answer.
CUT_OFF = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


@dataclass(slots=True)
class Gate:
    """A unary handler that answers when it may."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: bytes) -> bytes:
        """Echo what does not ask for the gate at once."""
        if request == b"gate":
            self.begun.set()
            await self.opened.wait()
        return request


async def _stopping(served: Served, grace_seconds: float) -> "asyncio.Task[None]":
    """A stop that has begun."""
    task = asyncio.create_task(served.server.stop(grace_seconds))
    async with served.another_client() as late:
        await _refused(late)
    return task


async def _refused(client: Client) -> None:
    """Soon after the server has begun to stop, nobody is there for new calls."""
    code = grpc.StatusCode.OK
    async with asyncio.timeout(PATIENCE_SECONDS):
        while code is not grpc.StatusCode.UNAVAILABLE:
            code = await client.start(b"x", timeout=PATIENCE_SECONDS).code()
            # CANCELLED: grpcio accepts a connection in that moment, and drops it.
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


async def _stopped(task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await task


async def test_stopping_lets_running_calls_finish(server: Serving) -> None:
    gate = Gate()
    async with server(service(unary=gate.answer)) as served:
        unary, stream = served.client.start(b"gate"), served.client.stream()
        assert await stream.exchange(b"before") == b"before"
        await gate.begun.wait()
        stopping = await _stopping(served, LONG_SECONDS)
        assert await stream.exchange(b"during") == b"during"
        gate.opened.set()
        assert await unary.code() is grpc.StatusCode.OK
        assert await stream.exchange(b"after") == b"after"
        assert not stopping.done()
        await stream.end()
        assert await stream.receive() is None
        assert await stream.code() is grpc.StatusCode.OK
        await _stopped(stopping)
    assert served.errors == []


async def test_stopping_refuses_new_calls_on_connections_that_still_serve_too(server: Serving) -> None:
    async with server() as served:
        running = served.client.stream()
        assert await running.exchange(b"x") == b"x"
        stopping = await _stopping(served, LONG_SECONDS)
        await _refused(served.client)
        late = served.client.stream()
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
        assert await running.exchange(b"still") == b"still"
        await running.end()
        assert await running.code() is grpc.StatusCode.OK
        await _stopped(stopping)
    assert served.errors == []


@pytest.mark.parametrize("grace", [0, 0.05])
@pytest.mark.parametrize("wait", WAITS)
async def test_stopping_cancels_what_does_not_finish_within_the_grace(server: Serving, wait: str, grace: float) -> None:
    waiting = Fates()
    async with server(service(), waiting.service()) as served:
        call = await WAITS[wait](served.client)
        await until(lambda: len(waiting.fates) == 1, served.client)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await served.server.stop(grace)
            await waiting.fates[0].cancelled.wait()
        assert await call.outcome() in CUT_OFF
    assert served.errors == []


async def test_stopping_does_not_wait_for_endless_streams_and_hears_them_out(server: Serving) -> None:
    """The last calls' entries of the access log come when the calls have ended."""
    heard: list[bytes] = []
    gate = Gate()

    async def listening(stream: Stream) -> None:
        while (message := await stream.read()) is not None:
            heard.append(message)
            stream.write(message)

    endless = Service(name="endless.Service", unary={}, streams={"Log": listening}, endless=True)
    async with server(service(unary=gate.answer), endless) as served:
        log, last = served.client.stream("endless.Service/Log"), served.client.start(b"gate")
        assert await log.exchange(b"before") == b"before"
        await gate.begun.wait()
        stopping = await _stopping(served, LONG_SECONDS)
        assert await log.exchange(b"during") == b"during"
        # In the turn in which the last call ends, and on its way when it has.
        saying = asyncio.create_task(log.send(b"last"))
        gate.opened.set()
        await saying
        assert await last.code() is grpc.StatusCode.OK
        await _stopped(stopping)
    assert heard == [b"before", b"during", b"last"]
    assert served.errors == []


async def test_stopping_ends_an_endless_stream_whose_handler_waits_for_something_else(server: Serving) -> None:
    ended = asyncio.Event()

    async def waiting(stream: Stream) -> None:
        stream.write(await stream.read() or b"")
        try:
            await asyncio.gather(asyncio.Event().wait(), stream.read())
        finally:
            ended.set()

    endless = Service(name=NAME, unary={}, streams={"Stream": waiting}, endless=True)
    async with server(endless) as served:
        call = served.client.stream()
        assert await call.exchange(b"x") == b"x"
        async with asyncio.timeout(PATIENCE_SECONDS):
            await served.server.stop(LONG_SECONDS)
            await ended.wait()
        assert await call.outcome() in {grpc.StatusCode.OK, *CUT_OFF}
    assert served.errors == []


async def test_stopping_waits_for_nobody_who_has_left(server: Serving) -> None:
    # Whether its handler is still told depends on how much of grpcio is gone by then.
    async with server() as served:
        call = served.client.stream()
        assert await call.exchange(b"x") == b"x"
        stopping = await _stopping(served, LONG_SECONDS)
        call.cancel()
        await _stopped(stopping)
    assert served.errors == []


@pytest.mark.parametrize("grace", [0.0, LONG_SECONDS])
async def test_stopping_waits_for_no_idle_connection(server: Serving, grace: float) -> None:
    async with server() as served, served.another_client() as other:
        for client in (served.client, other):
            assert await client.unary(b"x") == b"x"
        call = served.client.stream()
        await call.exchange(b"x")
        await call.end()
        assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(PATIENCE_SECONDS):
            await served.server.stop(grace)


@pytest.mark.parametrize("said", [b"", b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"], ids=["mute", "half", "idle"])
async def test_stopping_waits_for_no_connection_that_has_not_begun(server: Serving, said: bytes) -> None:
    async with server() as served:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(server.path))
            silent.sendall(said)
            assert await served.client.unary(b"x") == b"x"
            async with asyncio.timeout(PATIENCE_SECONDS):
                await served.server.stop(0.1)


async def test_who_comes_after_the_stop_finds_nobody_until_the_next_server_starts(server: Serving) -> None:
    async with server() as served, served.another_client() as client:
        assert await client.unary(b"x") == b"x"
        await served.server.stop(0)
        assert await client.start(b"x").code() is grpc.StatusCode.UNAVAILABLE
        async with server() as next_served:
            assert await client.unary(b"x", wait_for_ready=True) == b"x"
        assert next_served.errors == []


async def test_a_server_that_nobody_called_stops(server: Serving) -> None:
    async with server(service(stream=echo_all)) as served, asyncio.timeout(PATIENCE_SECONDS):
        await served.server.stop(LONG_SECONDS)
