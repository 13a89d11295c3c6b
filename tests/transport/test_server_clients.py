"""The contract of the seam, for what clients bring along: metadata, compression, signs of life, addresses."""

import asyncio
import os
import socket
import stat
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.grpc_health import Health
from tests.transport.client import PATIENCE_SECONDS, Client
from tests.transport.relay import relayed
from tests.transport.servers import NAME, Serving, service
from transport.address import UnixAddress

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# HTTP/2 counts 32 octets more per field (RFC 9113 section 6.5.2); what grpcio sends by itself needs some, too.
ALLOWED = 8_192 - 700

METADATA = {
    "none": (),
    "large": (("x-large", "v" * ALLOWED),),
    "many": tuple((f"x-{number}", "v" * 20) for number in range(ALLOWED // 60)),
    "repeated": (("x-same", "a"), ("x-same", "b"), ("x-same", "")),
    "binary": (("x-raw-bin", bytes(range(256))), ("x-empty-bin", b""), ("x-nul-bin", b"\x00" * 1000)),
    "text": (("x-text", "".join(chr(code) for code in range(0x21, 0x7F))), ("x-space", "a b, c")),
    "known": (("grpc-timeout-x", "1"), ("accept", "*/*"), ("cookie", "a=b; c=d"), ("authorization", "Bearer x")),
}


@pytest.mark.parametrize("metadata", METADATA)
async def test_what_a_client_says_beside_its_message_changes_nothing(server: Serving, metadata: str) -> None:
    async with server() as served:
        for number in range(20):
            extra = (*METADATA[metadata], ("x-request-id", f"{number:032x}"))
            assert await served.client.unary(b"x", metadata=extra) == b"x"
            call = served.client.stream(metadata=extra)
            assert await call.exchange(b"x") == b"x"
            await call.end()
            assert await call.code() is grpc.StatusCode.OK
    assert served.errors == []


async def test_a_client_that_says_much_that_is_new_each_time_is_served_on(server: Serving) -> None:
    """Whoever keeps a table of what was said must forget, in step with the client."""
    async with server() as served:
        for number in range(300):
            extra = tuple((f"x-{name}", f"{number * name:0{1 + number % 97}d}") for name in range(30))
            assert await served.client.unary(b"x", metadata=extra) == b"x"


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_message_that_is_compressed_is_read_or_clearly_refused(server: Serving, kind: str) -> None:
    message = b"x" * 10_000
    async with server() as served, Client(str(served.address), compression=grpc.Compression.Gzip) as client:
        call = client.start(message) if kind == "unary" else client.last_words(message)
        assert await call.outcome() in {grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED}
        assert await served.client.unary(message) == message
    assert served.errors == []


async def test_clients_that_ask_for_signs_of_life_are_given_them(server: Serving) -> None:
    """As Envoy does every few seconds while nothing but a long answer passes. grpcio's client asks once a second."""
    often = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with (
        server() as served,
        relayed(server.path) as (relay, target),
        served.another_client(*often, target=target) as idle,
        served.another_client(*often, target=target) as busy,
    ):
        running = busy.stream()
        assert await running.exchange(b"x") == b"x"
        assert await idle.unary(b"x") == b"x"
        # Many servers take the third for abuse.
        await relay.signs_of_life(8)
        assert await running.exchange(b"still") == b"still"
        assert await idle.unary(b"x") == b"x"
        assert relay.connections == 2
    assert served.errors == []


async def test_several_clients_are_served_at_once(server: Serving) -> None:
    async with server() as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served.another_client()) for _ in range(20)]
        calls = [client.stream() for client in clients]
        for number, call in enumerate(calls):
            await call.send(str(number).encode())
        assert [await call.receive() for call in calls] == [str(number).encode() for number in range(20)]
        answers = await asyncio.gather(*(client.unary(b"x") for client in clients))
        assert answers == [b"x"] * len(clients)
    assert served.errors == []


async def test_an_address_of_tcp_is_served_as_a_unix_socket_is(server: Serving) -> None:
    async with server(address=server.loopback()) as served:
        assert await served.client.unary(b"x") == b"x"
        assert await served.client.stream().exchange(b"y" * 1_000_000) == b"y" * 1_000_000
    assert served.errors == []


async def test_a_socket_that_a_killed_predecessor_left_is_replaced(server: Serving) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(server.path))
    async with server() as served:
        assert await served.client.unary(b"x") == b"x"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
async def test_only_those_may_connect_who_are_meant_to(server: Serving, mode: int) -> None:
    async with server(address=UnixAddress(path=server.path, mode=mode)):
        found = os.stat(server.path)  # noqa: PTH116 - a socket is local
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, os.getuid())


async def test_grpcios_own_client_understands_the_health_of_a_server(server: Serving) -> None:
    health = Health([NAME])
    asked = health_pb2.HealthCheckRequest(service=NAME)
    async with server(service(), health.service()) as served:
        stub = health_pb2_grpc.HealthStub(served.client.channel)
        assert (await stub.Check(asked, timeout=PATIENCE_SECONDS)).status == SERVING
        watch, leaver = stub.Watch(asked), stub.Watch(asked)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await watch.read()).status == SERVING
            assert (await leaver.read()).status == SERVING
            leaver.cancel()
            assert await served.client.unary(b"x") == b"x"
            health.stop_serving()
            assert (await watch.read()).status == NOT_SERVING
        assert (await stub.Check(asked, timeout=PATIENCE_SECONDS)).status == NOT_SERVING
    assert served.errors == []


async def test_who_watches_the_health_of_a_server_does_not_keep_it_from_stopping(server: Serving) -> None:
    health = Health([NAME])
    async with server(service(), health.service()) as served:
        watch = health_pb2_grpc.HealthStub(served.client.channel).Watch(health_pb2.HealthCheckRequest())
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await watch.read()).status == SERVING
            await served.server.stop(600)
            await watch.code()
    assert served.errors == []
