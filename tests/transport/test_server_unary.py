"""The contract of the seam, for calls of one message: bytes in, bytes out, whatever a handler does."""

import asyncio
from typing import Any

import grpc
import pytest

from tests.transport.servers import MEGABYTE, NAME, Serving, service
from transport.service import Service

SECRET = "hunter2"


async def _doubled(request: bytes) -> bytes:
    await asyncio.sleep(0)
    return request + request


@pytest.mark.parametrize("request_bytes", [b"", b"x", bytes(range(256)), b"\x00" * 5])
async def test_a_unary_call_is_bytes_in_and_bytes_out(server: Serving, request_bytes: bytes) -> None:
    async with server(service(unary=_doubled)) as served:
        assert await served.client.unary(request_bytes) == request_bytes + request_bytes
    assert served.errors == []


async def test_calls_of_one_connection_are_answered_in_the_order_in_which_their_handlers_end(server: Serving) -> None:
    last = asyncio.Event()

    async def waiting(request: bytes) -> bytes:
        if request == b"first":
            await last.wait()
        else:
            last.set()
        return request

    async with server(service(unary=waiting)) as served:
        first = asyncio.create_task(served.client.unary(b"first"))
        assert await served.client.unary(b"last") == b"last"
        assert await first == b"first"


async def test_each_method_of_each_service_has_its_own_handler(server: Serving) -> None:
    async def one(_: bytes) -> bytes:
        return b"one"

    async def two(_: bytes) -> bytes:
        return b"two"

    services = [
        Service(name="a.A", unary={"Do": one, "Undo": two}, streams={}),
        Service(name="a.B", unary={"Do": two}, streams={}),
    ]
    async with server(*services) as served:
        asked = ["a.A/Do", "a.A/Undo", "a.B/Do"]
        assert [await served.client.unary(b"", method) for method in asked] == [b"one", b"two", b"two"]


async def _failing(_: object) -> Any:
    raise ValueError(f"the password is {SECRET}")


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_handler_that_fails_is_told_once_to_the_observer_and_not_to_the_client(
    server: Serving, kind: str
) -> None:
    healthy = Service(name="other.Service", unary={"Unary": _doubled}, streams={})
    async with server(service(unary=_failing, stream=_failing), healthy) as served:
        for count in (1, 2):
            call = served.client.start(b"x") if kind == "unary" else served.client.stream()
            assert await call.code() is grpc.StatusCode.UNKNOWN
            assert SECRET not in await call.details()
            assert await served.client.unary(b"x", "other.Service/Unary") == b"xx"
            assert [type(error) for error in served.errors] == [ValueError] * count


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_handler_that_gives_up_by_itself_leaves_no_client_waiting(server: Serving, kind: str) -> None:
    async def cancelled(_: object) -> Any:
        raise asyncio.CancelledError

    async with server(service(unary=cancelled, stream=cancelled)) as served:
        call = served.client.start(b"x") if kind == "unary" else served.client.stream()
        assert await call.code() is not grpc.StatusCode.OK


@pytest.mark.parametrize("method", [f"{NAME}/Nothing", "no.Service/Unary", "Unary", f"{NAME}/Unary/x", f"{NAME}/unary"])
@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_what_nobody_serves_is_said_to_be_unimplemented(server: Serving, method: str, kind: str) -> None:
    async with server() as served:
        call = served.client.start(b"x", method) if kind == "unary" else served.client.stream(method)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await served.client.unary(b"x") == b"x"
    assert served.errors == []


async def test_a_large_message_to_what_nobody_serves_takes_nothing_from_the_connection(server: Serving) -> None:
    async with server() as served:
        for _ in range(20):
            call = served.client.start(b"x" * MEGABYTE, f"{NAME}/Nothing")
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await served.client.unary(b"x" * MEGABYTE) == b"x" * MEGABYTE
