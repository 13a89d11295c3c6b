"""A request ends while something that notes its end is away: is there one right row all the same, and nothing held?

Also the ends for which something must be killed or kept waiting. Natively metered streams whose workers, Redis or
Postgres are killed are in test_survival.py, what is admitted without Redis in test_outages.py.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import httpx
import pytest

from authz.principal import Metering
from tests.e2e.outages import redis_frozen, redis_killed, stopped
from tests.e2e.running import BODY, SLOW, Running, router_end, running
from tests.support.gateway import Gateway, Tenant, until
from tests.support.gateway import running as running_gateway

METERING = pytest.mark.parametrize("metering", list(Metering))
JSON = {**BODY, "stream": False}
IDLE = "idle_timeout: 300s"  # of listener and routes
KINDS = tuple(product(Metering, (False, True)))  # each metering, over HTTP/1.1 and HTTP/2


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway that waits for a silent Router for seconds, not minutes."""

    def impatient(config: str) -> str:
        assert IDLE in config
        return config.replace(IDLE, "idle_timeout: 4s")

    with running_gateway(env={"GATEWAY_DRAIN_SECONDS": "0.5"}, change_envoy=impatient) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
async def _whole(gateway: Gateway) -> None:
    """Whatever the test before broke, all of it is there again."""
    async with gateway.client(await gateway.tenant()) as client:

        async def whole() -> bool:
            # At once, for each of Envoy's threads to say to the recorder, not to who stood in for it, what has ended.
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=JSON) for _ in range(20)))
            if {answer.status_code for answer in answers} != {200} or not await gateway.is_quiet():
                return False
            healthy = await gateway.healthy_workers() == gateway.workers
            return healthy and await gateway.access_log_streams_at("recorder.sock") == 2

        await until(whole, seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What the Router or the client is made to do, and what the ledger must say of it."""

    name: str
    state: str
    cause: str
    steering: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=lambda: BODY)
    leaves_after: int | None = None


DONE = {"x-demo-events": "10", "x-demo-interval-ms": "20"}
ENDS = (
    End(name="an answer", state="completed", cause="finished", body=JSON, steering=DONE),
    End(name="a stream", state="completed", cause="finished", steering=DONE),
    End(name="an error", state="failed", cause="upstream_error", body=JSON, steering={"x-demo-status": "500"}),
    End(
        name="broken off",
        state="failed",
        cause="upstream_reset",
        steering={**DONE, "x-demo-fault": "reset-mid-stream"},
    ),
    End(name="left", state="cancelled", cause="client_disconnect", steering=SLOW, leaves_after=3),
)


@contextlib.asynccontextmanager
async def postgres_stopped(gateway: Gateway) -> AsyncIterator[None]:
    gateway.stop("postgres")
    try:
        yield
    finally:
        gateway.start_postgres()


@contextlib.asynccontextmanager
async def recorder_frozen(gateway: Gateway) -> AsyncIterator[None]:
    with stopped(*gateway.pids("sidecar.recorder")):
        yield


Outage = Callable[[Gateway], AbstractAsyncContextManager[None]]


async def _to_its_end(gateway: Gateway, tenant: Tenant, end: End, *, http2: bool) -> str:
    """One request, over a connection of its own; its id."""
    async with (
        gateway.client(tenant, http2=http2) as client,
        running(client, body=end.body, headers=end.steering) as request,
    ):
        await (request.ended() if end.leaves_after is None else request.seen(end.leaves_after))
    return request.request_id


async def _tenants(gateway: Gateway) -> dict[Metering, Tenant]:
    return {metering: await gateway.tenant(metering=metering) for metering in Metering}


async def _held(gateway: Gateway, tenants: dict[Metering, Tenant], count: int) -> None:
    """Wait until so many slots are held by both."""

    async def held() -> bool:
        return sum([await gateway.slots_held(tenant) for tenant in tenants.values()]) == count

    await until(held, seconds=60)


async def _rows(gateway: Gateway, tenants: dict[Metering, Tenant], ids: set[str]) -> dict[str, dict[str, Any]]:
    """One row of each request and no others; nothing is held for any."""

    async def written() -> bool:
        rows = [row for tenant in tenants.values() for row in await gateway.rows(tenant)]
        return len(rows) >= len(ids) and await gateway.is_quiet()

    await until(written, seconds=60)
    rows = [row for tenant in tenants.values() for row in await gateway.rows(tenant)]
    assert Counter(row["request_id"] for row in rows) == Counter(ids)
    await _held(gateway, tenants, 0)
    return {row["request_id"]: row for row in rows}


def _outcome(row: dict[str, Any]) -> tuple[str, str]:
    return str(row["state"]), str(row["cause"])


async def _end_all(gateway: Gateway, during: AbstractAsyncContextManager[None]) -> list[tuple[End, dict[str, Any]]]:
    """Every end, of both meterings and over both protocols, all of them during an outage; each with its row."""
    tenants = await _tenants(gateway)
    asked = [(end, metering, http2) for end in ENDS for metering, http2 in KINDS]
    with contextlib.ExitStack() as router_waits:
        router_waits.enter_context(stopped(gateway.children["router"].pid))
        tasks = [
            asyncio.create_task(_to_its_end(gateway, tenants[metering], end, http2=http2))
            for end, metering, http2 in asked
        ]
        await _held(gateway, tenants, len(asked))
        async with during:
            router_waits.close()
            ids = await asyncio.gather(*tasks)
    rows = await _rows(gateway, tenants, set(ids))
    return [(end, rows[request_id]) for (end, _, _), request_id in zip(asked, ids, strict=True)]


@pytest.mark.parametrize(
    "outage", [redis_frozen, redis_killed, postgres_stopped, recorder_frozen], ids=lambda outage: outage.__name__
)
async def test_what_ends_during_an_outage_has_its_right_row_after_it(gateway: Gateway, outage: Outage) -> None:
    for end, row in await _end_all(gateway, outage(gateway)):
        assert _outcome(row) == (end.state, end.cause), end.name
        if end.state == "completed":
            assert (row["usage_source"], row["output_tokens"], row["charged_requests"]) == ("exact", 10, 1), end.name


async def test_a_recorder_that_is_killed_while_many_end_may_forget_how_and_never_that(gateway: Gateway) -> None:
    @contextlib.asynccontextmanager
    async def killed() -> AsyncIterator[None]:
        [pid] = gateway.pids("sidecar.recorder")
        os.kill(pid, signal.SIGKILL)

        async def gone() -> bool:
            return pid not in gateway.pids("sidecar.recorder")

        await until(gone)
        yield

    for end, row in await _end_all(gateway, killed()):
        # What was on its way into the socket of the dead is gone: the worker says so, seconds later, or the sweeper.
        assert _outcome(row) in {(end.state, end.cause), ("failed", "gateway_lost")}, end.name
        assert row["cause"] != "gateway_lost" or row["usage_source"] == "estimated", end.name


@contextlib.asynccontextmanager
async def _many(
    gateway: Gateway, tenants: dict[Metering, Tenant], steering: dict[str, str], body: dict[str, Any] = BODY
) -> AsyncIterator[list[tuple[Metering, Running]]]:
    """A request of each kind, held by its client until the end of the block."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for metering, http2 in KINDS:
            client = await stack.enter_async_context(gateway.client(tenants[metering], http2=http2))
            request = await stack.enter_async_context(running(client, body=body, headers=steering))
            found.append((metering, request))
        yield found


async def test_workers_killed_end_streams_in_line_and_no_others(gateway: Gateway) -> None:
    tenants = await _tenants(gateway)
    async with _many(gateway, tenants, {"x-demo-events": "60", "x-demo-interval-ms": "50"}) as streams:
        for _, request in streams:
            await request.seen(3)
        for pid in gateway.pids("sidecar.worker"):
            os.kill(pid, signal.SIGKILL)
        for _, request in streams:
            await request.ended()
    rows = await _rows(gateway, tenants, {request.request_id for _, request in streams})
    for metering, request in streams:
        row, seen = rows[request.request_id], await gateway.seen(request.request_id)
        assert seen is not None
        if metering is Metering.NATIVE:
            assert (request.broken, request.data[-1], seen["end"]) == (False, "[DONE]", "completed")
            assert (*_outcome(row), row["usage_source"], row["output_tokens"]) == ("completed", "finished", "exact", 60)
        else:
            assert (request.broken, seen["end"]) == (True, "client_closed")
            assert (*_outcome(row), row["usage_source"]) == ("failed", "gateway_lost", "estimated")
            assert 3 <= row["output_tokens"] <= seen["events_written"]


@pytest.mark.parametrize("body", [BODY, JSON], ids=["stream", "json"])
async def test_envoy_killed_leaves_one_row_for_each_request_it_carried(gateway: Gateway, body: dict[str, Any]) -> None:
    tenants = await _tenants(gateway)
    steering = SLOW if body is BODY else {"x-demo-fault": "hang"}
    async with _many(gateway, tenants, steering, body) as requests:
        if body is BODY:
            for _, request in requests:
                await request.seen(3)
        await _held(gateway, tenants, len(requests))
        gateway.kill("envoy")
        try:
            for _, request in requests:
                await request.ended()
                assert request.broken

            async def written() -> bool:
                return sum([len(await gateway.rows(tenant)) for tenant in tenants.values()]) >= len(requests)

            await until(written, seconds=60)
        finally:
            gateway.start_envoy()
    rows = [row for tenant in tenants.values() for row in await gateway.rows(tenant)]
    assert Counter(map(_outcome, rows)) == {("failed", "gateway_lost"): len(requests)}
    assert len({row["request_id"] for row in rows}) == len(requests)
    assert {row["usage_source"] for row in rows} == {"estimated"}
    for row in rows:
        assert await router_end(gateway, row["request_id"]) == "client_closed"
    await _held(gateway, tenants, 0)


SILENT = (
    ({"x-demo-fault": "hang"}, BODY),
    ({"x-demo-fault": "hang"}, JSON),
    ({"x-demo-fault": "stall-mid-stream"}, BODY),
    ({"x-demo-fault": "stall-mid-stream"}, JSON),
)


async def test_a_router_that_idles_is_given_up(gateway: Gateway) -> None:
    tenants = await _tenants(gateway)
    async with contextlib.AsyncExitStack() as stack:
        asked = [
            (steering["x-demo-fault"], request)
            for steering, body in SILENT
            for _, request in await stack.enter_async_context(_many(gateway, tenants, steering, body))
        ]
        for _, request in asked:
            await request.ended()
    rows = await _rows(gateway, tenants, {request.request_id for _, request in asked})
    for fault, request in asked:
        row = rows[request.request_id]
        assert _outcome(row) == ("timed_out", "upstream_timeout")
        assert await router_end(gateway, request.request_id) == "client_closed"
        if fault == "hang":
            assert (request.status, request.error, request.broken) == (504, "upstream_timeout", False)
            assert (row["output_tokens"], row["charged_requests"]) == (0, 0)
        else:
            assert (request.status, request.broken) == (httpx.codes.OK, True)
            assert row["charged_requests"] == 1


@METERING
async def test_a_cancel_while_redis_is_frozen_changes_nothing(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    steering = {"x-demo-events": "60", "x-demo-interval-ms": "30"}
    async with gateway.client(tenant) as client, running(client, headers=steering) as request:
        await request.seen(2)
        async with redis_frozen(gateway):
            answer = await client.post(f"/v1/requests/{request.request_id}/cancel")
        await request.ended()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "limits_unavailable")
    assert (request.broken, request.data[-1]) == (False, "[DONE]")
    rows = await _rows(gateway, {metering: tenant}, {request.request_id})
    assert _outcome(rows[request.request_id]) == ("completed", "finished")
