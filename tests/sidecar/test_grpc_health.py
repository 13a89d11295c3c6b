"""The standard health service, on its own seam and through grpcio's own client of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.grpc_health import SERVICE_NAME, Health
from tests.extproc.memory_stream import MemoryStream
from transport.address import UnixAddress
from transport.grpcio_server import GrpcioServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def _asked(name: str) -> bytes:
    return bytes(health_pb2.HealthCheckRequest(service=name).SerializeToString())


def _status(raw: bytes) -> int:
    return int(health_pb2.HealthCheckResponse.FromString(raw).status)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("", SERVING, NOT_SERVING),
        ("a.Service", SERVING, NOT_SERVING),
        ("other.Service", UNKNOWN, UNKNOWN),
    ],
)
async def test_check_says_how_a_service_is_now(name: str, before: int, after: int) -> None:
    health = Health(["a.Service"])
    assert _status(await health.check(_asked(name))) == before
    health.stop_serving()
    assert _status(await health.check(_asked(name))) == after


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("", SERVING, NOT_SERVING),
        ("a.Service", SERVING, NOT_SERVING),
        ("other.Service", UNKNOWN, UNKNOWN),
    ],
)
async def test_watch_says_how_a_service_is_and_each_change(name: str, before: int, after: int) -> None:
    health, stream = Health(["a.Service"]), MemoryStream()
    # Watch takes one request: its clients end their own side at once, and listen on.
    stream.put(_asked(name))
    stream.end()
    async with _watched(health, stream):
        assert _status(await stream.answer()) == before
        for _ in range(5):
            await asyncio.sleep(0)
        health.stop_serving()
        if after != before:
            assert _status(await stream.answer()) == after


async def test_who_watches_a_server_that_drains_is_told_so_at_once() -> None:
    health, stream = Health([]), MemoryStream()
    health.stop_serving()
    stream.put(_asked(""))
    stream.end()
    async with _watched(health, stream):
        assert _status(await stream.answer()) == NOT_SERVING


async def test_a_watcher_that_leaves_without_asking_is_let_go() -> None:
    stream = MemoryStream()
    stream.end()
    await Health([]).watch(stream)
    await _nothing_else_runs()


@contextlib.asynccontextmanager
async def _watched(health: Health, stream: MemoryStream) -> AsyncIterator[None]:
    """A watch, ended as gRPC ends the handler of a client that is gone."""
    watching = asyncio.create_task(health.watch(stream))
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_watch_that_is_cancelled_leaves_nothing_behind() -> None:
    health, stream = Health([]), MemoryStream()
    stream.put(_asked(""))
    watching = asyncio.create_task(health.watch(stream))
    await stream.answer()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await _nothing_else_runs()


async def _nothing_else_runs() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    assert not left


async def test_grpcios_own_client_understands_it(tmp_path: Path) -> None:
    path, errors = tmp_path / "h.sock", list[Exception]()
    health = Health(["a.Service"])
    assert health.service().name == SERVICE_NAME
    server = GrpcioServer(
        [health.service()], address=UnixAddress(path=path), max_body_bytes=1024, observe_error=errors.append
    )
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="a.Service")
        assert (await stub.Check(asked)).status == SERVING
        watch = stub.Watch(asked)
        statuses = [await asyncio.wait_for(watch.read(), 20)]
        health.stop_serving()
        statuses.append(await asyncio.wait_for(watch.read(), 20))
        assert [answer is not grpc.aio.EOF and answer.status for answer in statuses] == [SERVING, NOT_SERVING]
        assert (await stub.Check(asked)).status == NOT_SERVING
        watch.cancel()
    await server.stop(0)
    assert errors == []
