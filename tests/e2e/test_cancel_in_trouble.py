"""A cancel when something is gone: the worker of the stream, Redis; and from a replica that never had the request."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from authz.principal import Metering
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.embedded.redis import EmbeddedRedis
from tests.e2e.running import router_end, running
from tests.support.gateway import Gateway, until
from tests.support.gateway import running as running_gateway

METERING = pytest.mark.parametrize("metering", list(Metering))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway() as gateway:
        yield gateway


@dataclass(slots=True, kw_only=True)
class Replica(Gateway):
    """Another Envoy and sidecar, with the same Redis, Postgres and Router."""

    home: Gateway

    @property
    def postgres(self) -> EmbeddedPostgres:
        return self.home.postgres

    @property
    def redis(self) -> EmbeddedRedis:
        return self.home.redis


@pytest.fixture
def replica(gateway: Gateway) -> Iterator[Replica]:
    folder = Path(tempfile.mkdtemp(prefix="gw-e2e-"))
    env = {**gateway.env, "GATEWAY_REPLICA": "another"}
    router = gateway.router_port
    found = Replica(folder=folder, loop=gateway.loop, workers=1, env=env, router_port=router, home=gateway)
    try:
        found.start_serve()
        found.start_envoy()
        yield found
    finally:
        for name in ("envoy", "serve"):
            if name in found.children:
                found.stop(name)
        shutil.rmtree(folder, ignore_errors=True)


async def _cancelled(client: httpx.AsyncClient, request_id: str) -> None:
    """Cancel until somebody can answer."""

    async def answered() -> bool:
        answer = await client.post(f"/v1/requests/{request_id}/cancel")
        assert answer.status_code in {200, 202, 503}, answer.text
        return answer.status_code != 503

    await until(answered)


@METERING
async def test_any_replica_cancels_what_another_holds(gateway: Gateway, replica: Replica, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client, replica.client(tenant) as there, running(client) as request:
        await request.seen(2)
        answer = await there.post(f"/v1/requests/{request.request_id}/cancel")
        await request.ended()
    assert answer.status_code == 200, answer.text
    assert await router_end(gateway, request.request_id) == "client_closed"
    ending = (await gateway.row(request.request_id)).ending
    assert (ending.state, ending.cause) == ("cancelled", "client_cancel")


async def test_a_stream_whose_worker_is_gone_is_ended_by_the_router(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(2)
        for pid in gateway.pids("sidecar.worker"):
            os.kill(pid, signal.SIGKILL)
        await request.seen(request.events + 3)
        await _cancelled(client, request.request_id)
        await request.ended()
    assert await router_end(gateway, request.request_id) == "cancelled"
    ending = (await gateway.row(request.request_id)).ending
    assert (ending.state, ending.cause) == ("cancelled", "client_cancel")
    assert ending.output_tokens >= 5
    rows = [row for row in await gateway.rows(tenant) if row["request_id"] == request.request_id]
    assert len(rows) == 1


async def test_without_redis_nothing_is_cancelled_and_later_it_is(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(2)
        gateway.stop("redis")
        try:
            answer = await client.post(f"/v1/requests/{request.request_id}/cancel")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "limits_unavailable"
            await request.seen(request.events + 3)
        finally:
            gateway.start_redis()
        await _cancelled(client, request.request_id)
        await request.ended()
    ending = (await gateway.row(request.request_id)).ending
    assert (ending.state, ending.cause) == ("cancelled", "client_cancel")
