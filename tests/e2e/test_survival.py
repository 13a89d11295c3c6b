"""A process is killed now: does any stream break, is anybody let in, is a row lost or doubled?

Each test breaks something, so they share a gateway of their own, and each puts it together again.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, Tenant, running, streaming, until

INFER = {"model": "m", "input": "hello"}
STREAMS = 50


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running(env={"GATEWAY_DRAIN_SECONDS": "10"}, durable=True) as gateway:
        yield gateway


@pytest.fixture
async def tenant(gateway: Gateway) -> Tenant:
    """A tenant of a gateway that is whole again, whatever the test before broke."""
    tenant, probe = await gateway.tenant(), await gateway.tenant()
    async with gateway.client(probe) as client:

        async def whole() -> bool:
            statuses = [(await _post(client)).status_code for _ in range(20)]
            return await gateway.healthy_workers() == gateway.workers and statuses == [200] * 20

        await until(whole)
    return tenant


@pytest.fixture
async def client(gateway: Gateway, tenant: Tenant) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client(tenant) as client:
        yield client


class Streams:
    """Many streams of one client, all of which have begun."""

    def __init__(self, client: httpx.AsyncClient, *, events: int) -> None:
        self._client = client
        self._events = events
        self._begun = 0
        self.all_begun = asyncio.Event()
        self._tasks = [asyncio.create_task(self._follow()) for _ in range(STREAMS)]

    async def _follow(self) -> tuple[str, list[str]]:
        headers = {"x_demo_events": str(self._events), "x_demo_interval_ms": "100"}
        async with streaming(self._client, {}, **headers) as (response, events):
            assert response.status_code == 200, await response.aread()
            read = [await anext(events)]
            self._begun += 1
            if self._begun == STREAMS:
                self.all_begun.set()
            read += [event async for event in events]
            return response.headers["x-request-id"], read

    async def begun(self) -> "Streams":
        begun = asyncio.create_task(self.all_begun.wait())
        waiting: set[asyncio.Task[Any]] = {begun, *self._tasks}
        while not begun.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a stream that did not begin says why
        return self

    async def ended(self) -> list[tuple[str, list[str]]]:
        return await asyncio.gather(*self._tasks)


async def _post(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/infer", json=INFER)


async def _admits_again(client: httpx.AsyncClient) -> None:
    async def admitted() -> bool:
        return (await _post(client)).status_code == 200

    await until(admitted)


async def _rows(gateway: Gateway, tenant: Tenant, count: int) -> list[dict[str, Any]]:
    async def all_there() -> bool:
        return len(await gateway.rows(tenant)) >= count

    await until(all_there, seconds=60)
    return await gateway.rows(tenant)


async def _assert_whole(gateway: Gateway, tenant: Tenant, ended: list[tuple[str, list[str]]], events: int) -> None:
    """Every stream ran to its end, and has one right row."""
    for _, read in ended:
        assert read[-1] == "[DONE]"
        assert len(read) == events + 1
    ids = {request_id for request_id, _ in ended}

    async def all_there() -> bool:
        return ids <= {row["request_id"] for row in await gateway.rows(tenant)}

    await until(all_there, seconds=60)
    rows = [row for row in await gateway.rows(tenant) if row["request_id"] in ids]
    assert len(rows) == len(ids) == STREAMS
    assert {(row["state"], row["cause"], row["output_tokens"], row["usage_source"]) for row in rows} == {
        ("completed", "finished", events, "exact")
    }


async def test_both_workers_killed_cut_no_stream_and_let_nobody_in(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    streams = await Streams(client, events=60).begun()
    for pid in gateway.pids("sidecar.worker"):
        os.kill(pid, signal.SIGKILL)
    refused = await _post(client)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "gateway_unavailable"
    assert refused.headers["retry-after"] == "1"
    assert await gateway.seen(refused.headers["x-request-id"]) is None
    await _admits_again(client)
    await _assert_whole(gateway, tenant, await streams.ended(), 60)


@pytest.mark.parametrize("stand_in", [False, True], ids=["", "after workers stood in for the recorder"])
async def test_streams_that_end_while_no_worker_lives_have_right_rows(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient, *, stand_in: bool
) -> None:
    if stand_in:
        [recorder] = gateway.pids("sidecar.recorder")
        os.kill(recorder, signal.SIGKILL)
        await asyncio.gather(*(_post(client) for _ in range(50)))

        async def recorder_has_all() -> bool:
            await asyncio.gather(*(_post(client) for _ in range(20)))
            return await gateway.access_log_streams_at("recorder.sock") >= 2

        await until(recorder_has_all)
    streams = await Streams(client, events=40).begun()
    pids = gateway.pids("sidecar.worker")
    # Stopped, the supervisor does not start new ones before the streams have ended.
    serve = gateway.children["serve"].pid
    os.kill(serve, signal.SIGSTOP)
    try:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        ended = await streams.ended()
    finally:
        os.kill(serve, signal.SIGCONT)
    await _assert_whole(gateway, tenant, ended, 40)


async def test_one_worker_killed_is_not_noticed(gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient) -> None:
    streams = await Streams(client, events=30).begun()
    os.kill(gateway.pids("sidecar.worker")[0], signal.SIGKILL)
    await _admits_again(client)
    await _assert_whole(gateway, tenant, await streams.ended(), 30)


async def test_a_terminated_worker_drains(gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient) -> None:
    streams = await Streams(client, events=30).begun()
    os.kill(gateway.pids("sidecar.worker")[0], signal.SIGTERM)
    statuses = [(await _post(client)).status_code for _ in range(40)]
    assert statuses == [200] * 40
    await _assert_whole(gateway, tenant, await streams.ended(), 30)


async def test_the_ledger_writer_killed_again_and_again_loses_and_doubles_nothing(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    admitted = 0
    for _ in range(4):
        answers = await asyncio.gather(*(_post(client) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}, {answer.text for answer in answers}
        admitted += len(answers)
        for pid in gateway.pids("sidecar.ledger_writer"):
            os.kill(pid, signal.SIGKILL)
    assert admitted == 200
    rows = await _rows(gateway, tenant, admitted)
    assert len(rows) == len({row["request_id"] for row in rows}) == admitted


async def test_the_recorder_killed_again_and_again_stops_nobody_and_leaves_one_row_each(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    admitted = 0
    for _ in range(3):
        for pid in gateway.pids("sidecar.recorder"):
            os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*(_post(client) for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200}, {answer.text for answer in answers}
        admitted += len(answers)
    rows = await _rows(gateway, tenant, admitted)
    assert len(rows) == len({row["request_id"] for row in rows}) == admitted


async def test_workers_killed_under_load_leave_one_row_per_request_the_router_saw(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    async def load() -> list[tuple[int, str]]:
        found = []
        for _ in range(25):
            answer = await _post(client)
            found.append((answer.status_code, answer.headers["x-request-id"]))
        return found

    running_load = [asyncio.create_task(load()) for _ in range(8)]
    for _ in range(3):
        for pid in gateway.pids("sidecar.worker")[:1]:
            os.kill(pid, signal.SIGKILL)
        await _admits_again(client)
    outcomes = [outcome for task in running_load for outcome in await task]
    assert {status for status, _ in outcomes} <= {200, 503}
    answered = {request_id for status, request_id in outcomes if status == 200}
    refused = {request_id for status, request_id in outcomes if status == 503}
    for request_id in refused:
        assert await gateway.seen(request_id) is None

    async def all_there() -> bool:
        return answered <= {row["request_id"] for row in await gateway.rows(tenant)}

    await until(all_there, seconds=60)
    rows = await gateway.rows(tenant)
    assert len(rows) == len({row["request_id"] for row in rows})


async def test_redis_killed_lets_nobody_in_and_loses_nothing(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    streams = await Streams(client, events=30).begun()
    gateway.kill("redis")
    try:
        refused = await _post(client)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "limits_unavailable"
        assert refused.headers["retry-after"] == "1"
        ended = await streams.ended()
    finally:
        gateway.start_redis()
    await _admits_again(client)
    await _assert_whole(gateway, tenant, ended, 30)


async def test_postgres_killed_stops_no_known_caller_and_loses_no_row(
    gateway: Gateway, tenant: Tenant, client: httpx.AsyncClient
) -> None:
    streams = await Streams(client, events=30).begun()
    gateway.kill("postgres")
    try:
        assert [(await _post(client)).status_code for _ in range(10)] == [200] * 10
        stranger = "igw_test_000000000000_" + "a" * 43
        answer = await client.post("/v1/infer", json=INFER, headers={"authorization": f"Bearer {stranger}"})
        assert answer.status_code == 401  # its checksum is wrong: no database is needed to say so
        ended = await streams.ended()
    finally:
        gateway.start_postgres()
    await _assert_whole(gateway, tenant, ended, 30)
    assert len(await _rows(gateway, tenant, STREAMS + 10)) == STREAMS + 10


@pytest.mark.usefixtures("tenant")
async def test_an_unknown_key_is_not_called_wrong_while_postgres_is_away(gateway: Gateway) -> None:
    newcomer = await gateway.tenant()
    gateway.kill("postgres")
    try:
        async with gateway.client(newcomer) as client:
            answer = await _post(client)
    finally:
        gateway.start_postgres()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "identity_unavailable"
    async with gateway.client(newcomer) as client:
        await _admits_again(client)


async def test_envoy_killed_settles_what_it_carried(gateway: Gateway, tenant: Tenant) -> None:
    async with gateway.client(tenant) as client:
        streams = await Streams(client, events=300).begun()
        gateway.kill("envoy")
        try:
            with pytest.raises(httpx.HTTPError):
                await streams.ended()
        finally:
            gateway.start_envoy()
    rows = await _rows(gateway, tenant, STREAMS)
    assert {(row["state"], row["cause"], row["usage_source"]) for row in rows} == {
        ("failed", "gateway_lost", "estimated")
    }
    assert len(rows) == len({row["request_id"] for row in rows}) == STREAMS
