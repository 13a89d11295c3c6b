"""The contract of the seam, for calls that end early: the handler is cancelled, nobody else is told or harmed."""

import asyncio

import grpc
import pytest

from tests.transport.client import PATIENCE_SECONDS
from tests.transport.handlers import WAITS, Fates
from tests.transport.relay import relayed
from tests.transport.servers import MEGABYTE, Serving, service
from tests.transport.waiting import until
from transport.service import Stream

# A piece fits into the first window of a stream; together they are more than that of any connection.
MANY, PIECE = 300, b"x" * 60_000


@pytest.mark.parametrize("wait", WAITS)
async def test_a_client_that_cancels_cancels_the_handler(server: Serving, wait: str) -> None:
    waiting = Fates()
    async with server(service(), waiting.service()) as served:
        call = await WAITS[wait](served.client)
        await until(lambda: len(waiting.fates) == 1, served.client)
        call.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await waiting.fates[0].cancelled.wait()
        assert await served.client.unary(b"x") == b"x"
    assert served.errors == []


async def test_a_connection_that_breaks_cancels_all_of_its_handlers_and_no_other(server: Serving) -> None:
    waiting = Fates()
    async with server(service(), waiting.service()) as served, relayed(server.path) as (relay, target):
        async with served.another_client(target=target) as lost:
            calls = [await begin(lost) for begin in WAITS.values()]
            await until(lambda: len(waiting.fates) == len(WAITS), served.client)
            call = await WAITS["stream-that-reads"](served.client)
            await until(lambda: len(waiting.fates) == len(WAITS) + 1, served.client)
            relay.cut()
            async with asyncio.timeout(PATIENCE_SECONDS):
                for fate in waiting.fates[:-1]:
                    await fate.cancelled.wait()
            assert await calls[0].code() is grpc.StatusCode.UNAVAILABLE
        assert await served.client.unary(b"x") == b"x"
        assert not waiting.fates[-1].cancelled.is_set()
        call.cancel()
    assert served.errors == []


async def test_a_client_that_comes_back_after_a_break_is_served(server: Serving) -> None:
    async with (
        server() as served,
        relayed(server.path) as (relay, target),
        served.another_client(target=target) as client,
    ):
        for _ in range(3):
            assert await client.unary(b"x", wait_for_ready=True) == b"x"
            relay.cut()
            await until(lambda: not relay.connected, served.client)
        assert await client.unary(b"x", wait_for_ready=True) == b"x"
        assert relay.connections == 4
    assert served.errors == []


async def test_the_server_keeps_the_deadline_though_the_client_says_no_more(server: Serving) -> None:
    waiting = Fates()
    async with server(service(), waiting.service()) as served, relayed(server.path) as (relay, target):
        async with served.another_client(target=target) as client:
            calls = [await begin(client, deadline=2) for begin in WAITS.values()]
            await until(lambda: len(waiting.fates) == len(calls), served.client)
            relay.hold()
            async with asyncio.timeout(PATIENCE_SECONDS):
                for fate in waiting.fates:
                    await fate.cancelled.wait()
            assert [await call.outcome() for call in calls] == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(calls)
        assert await served.client.unary(b"x") == b"x"
    assert served.errors == []


async def test_a_call_within_its_deadline_is_answered(server: Serving) -> None:
    async with server() as served:
        for timeout in (PATIENCE_SECONDS, 3600.5, 1e6, 1e9):
            assert await served.client.unary(b"x", timeout=timeout) == b"x"


async def test_a_handler_may_end_before_its_client_is_done(server: Serving) -> None:
    async def once(stream: Stream) -> None:
        stream.write(await stream.read() or b"")

    async with server(service(stream=once)) as served:
        call = served.client.stream()
        assert await call.exchange(b"x") == b"x"
        assert await call.receive() is None
        assert await call.code() is grpc.StatusCode.OK
        assert await served.client.unary(b"x") == b"x"
    assert served.errors == []


async def test_what_comes_after_the_end_takes_nothing_from_the_connection(server: Serving) -> None:
    """Each leaves a message behind: a connection that does not count them runs dry."""
    ended = 0

    async def deaf(_: Stream) -> None:
        nonlocal ended
        ended += 1

    async with (
        server(service(stream=deaf)) as served,
        relayed(server.path) as (relay, target),
        served.another_client(target=target) as client,
    ):
        assert await client.unary(b"x") == b"x"
        for number in range(MANY):
            relay.pause()
            call = client.stream()
            await call.send(b"x")
            await until(lambda seen=number: ended == seen + 1, served.client)  # type: ignore[misc]
            heard = relay.heard
            await call.send(PIECE)
            await relay.hears(heard + len(PIECE))
            relay.go_on()
            assert await call.outcome() is grpc.StatusCode.OK
        assert await client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
        assert relay.connections == 1
    assert served.errors == []


async def test_what_a_cancelled_call_had_not_read_takes_nothing_from_the_connection(server: Serving) -> None:
    async def deaf(_: Stream) -> None:
        await asyncio.Event().wait()

    async with (
        server(service(stream=deaf)) as served,
        relayed(server.path) as (relay, target),
        served.another_client(target=target) as client,
    ):
        for _ in range(MANY):
            heard = relay.heard
            call = client.stream()
            # Whole messages in whole frames: whoever holds those for a handler counts all of them.
            for _ in range(4):
                await call.send(PIECE[:15_000])
            await relay.hears(heard + 60_000)
            assert await client.unary(b"x") == b"x"
            call.cancel()
        assert await client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
        assert relay.connections == 1
    assert served.errors == []


async def test_what_a_cancelled_client_had_not_read_takes_nothing_from_the_connection(server: Serving) -> None:
    async def flooding(stream: Stream) -> None:
        stream.write(b"x" * MEGABYTE)
        await stream.read()

    async with server(service(stream=flooding)) as served:
        for _ in range(100):
            call = served.client.stream()
            await call.send(b"x")
            assert await served.client.unary(b"x") == b"x"
            call.cancel()
        assert await served.client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
    assert served.errors == []


async def test_a_thousand_calls_that_are_cancelled_at_once_harm_nobody(server: Serving) -> None:
    """Envoy resets every stream of ext_proc at its end: resets alone are no attack."""
    async with server() as served:
        bystander = served.client.stream()
        for _ in range(10):
            calls = [served.client.stream() for _ in range(100)]
            for call in calls:
                assert await call.exchange(b"x") == b"x"
            for call in calls:
                call.cancel()
            assert await bystander.exchange(b"still") == b"still"
        await bystander.end()
        assert await bystander.receive() is None
    assert served.errors == []
