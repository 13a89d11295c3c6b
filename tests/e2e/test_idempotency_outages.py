"""Idempotency keys while Postgres, Redis or the workers are away: nothing is made twice, and nobody else is refused."""

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import msgspec
import pytest
from redis.asyncio import Redis

from authz.principal import Metering
from quota.limit import OnOutage, requests_per_minute
from tests.e2e.bodies import CHAT, INFER, body
from tests.e2e.running import running as being_answered
from tests.e2e.test_idempotency import (
    KEY,
    METERING,
    TRICKLE,
    change,
    claimed,
    code,
    post,
    request_id,
    settled,
    upstream,
)
from tests.support.gateway import Gateway, Tenant, running, until

DELAYED = {"x-demo-delay-ms": "1500"}
# Without their limits, these pass.
OPEN = msgspec.structs.replace(requests_per_minute(1_000_000), on_outage=OnOutage.OPEN)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running(env={"GATEWAY_DRAIN_SECONDS": "0.5"}, durable=True) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
async def _whole(gateway: Gateway) -> None:
    """Whatever the test before broke, all of it is there again."""
    async with gateway.client(await gateway.tenant()) as client:

        async def whole() -> bool:
            answers = [await post(client, **{"idempotency-key": os.urandom(8).hex()}) for _ in range(10)]
            return await gateway.healthy_workers() == gateway.workers and set(map(code, answers)) == {"200"}

        await until(whole, seconds=60)


async def known_to_all(client: httpx.AsyncClient) -> None:
    """Both workers know the caller, and have asked for a key."""
    for _ in range(6):
        assert (await client.post(INFER, json=body(INFER))).status_code == 200
        await client.get("/v1/models")


async def told(client: httpx.AsyncClient, *keys: str) -> set[str]:
    return {code(await post(client, **{"idempotency-key": key})) for key in keys}


@pytest.mark.parametrize("outage", ["postgres", "redis"])
async def test_only_what_carries_a_key_is_refused(gateway: Gateway, outage: str) -> None:
    tenant = await gateway.tenant(OPEN)
    async with gateway.client(tenant) as client:
        await known_to_all(client)
        assert await told(client, "before") == {"200"}
        gateway.stop(outage)
        try:
            assert await told(client, "new", "newer", "newest", "newest-of-all") == {"idempotency_unavailable"}
            # What was recorded needs no Redis to be given again.
            assert await told(client, "before") == {"200 again" if outage == "redis" else "idempotency_unavailable"}
            refused = await post(client)
            assert (code(refused), refused.status_code) == ("idempotency_unavailable", 503)
            assert refused.headers["retry-after"] == "1"
            assert (await client.post(INFER, json=body(INFER))).status_code == 200
        finally:
            gateway.start_postgres() if outage == "postgres" else gateway.start_redis()

        async def again() -> bool:
            return await told(client, "before") == {"200 again"} and await told(client, "new") <= {"200", "200 again"}

        await until(again)


async def held_up(gateway: Gateway, client: httpx.AsyncClient, tenant: Tenant) -> "asyncio.Task[httpx.Response]":
    """A request with a key that the Router has, and has not answered yet."""
    first = asyncio.create_task(client.post(INFER, json=body(INFER), headers=DELAYED | KEY))
    holder = await claimed(gateway, tenant)

    async def at_the_router() -> bool:
        return await gateway.seen(holder) is not None

    await until(at_the_router)
    return first


async def test_native_answers_outlive_the_workers_and_are_elsewhere_then(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        first = await held_up(gateway, client, tenant)
        for pid in gateway.pids("sidecar.worker"):
            os.kill(pid, signal.SIGKILL)
        answer = await first
        assert (answer.status_code, answer.json()["model"]) == (200, "m")
        [row] = await settled(gateway, tenant)
        assert (row["state"], row["usage_source"]) == ("completed", "exact")

        async def is_told() -> bool:
            again = await post(client)
            assert await upstream(gateway, [again]) == []
            return code(again) == "idempotent_result_elsewhere"

        await until(is_told)


@METERING
async def test_a_stream_that_outlives_its_worker_is_not_made_twice(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    wanted, slow = body(CHAT, stream=True), {"x-demo-events": "20", "x-demo-interval-ms": "100"}
    async with gateway.client(tenant) as client:
        async with client.stream("POST", CHAT, json=wanted, headers=slow | KEY) as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            for pid in gateway.pids("sidecar.worker"):
                os.kill(pid, signal.SIGKILL)
            try:
                cut = [line async for line in lines if line][-1] != "data: [DONE]"
            except httpx.HTTPError:
                cut = True
        [row] = await settled(gateway, tenant)
        assert cut is (metering is Metering.INLINE)
        assert (row["state"] == "completed") is not cut
        # What was cut may be made again, what was whole may not.
        expected = "200" if cut else "idempotent_result_elsewhere"

        async def is_told() -> bool:
            return code(await post(client, CHAT, wanted)) == expected

        await until(is_told)
    await settled(gateway, tenant, 2 if cut else 1)


@METERING
async def test_a_stream_that_redis_has_forgotten_is_not_made_twice(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    wanted = body(CHAT, stream=True)
    async with (
        gateway.client(tenant) as client,
        being_answered(client, path=CHAT, body=wanted, headers=TRICKLE | KEY) as stream,
    ):
        await stream.seen(2)
        async with Redis.from_url(gateway.redis.url) as redis:
            await redis.flushall()
        await change(gateway, tenant, "claimed_at = claimed_at - interval '1 hour'")

        async def is_told() -> bool:
            again = await post(client, CHAT, wanted)
            assert await upstream(gateway, [again]) == []
            # Until the counters are whole again, there is no asking.
            assert code(again) in {"idempotency_key_in_use", "idempotency_unavailable"}
            return code(again) == "idempotency_key_in_use"

        await until(is_told)


@METERING
async def test_an_answer_is_given_though_it_cannot_be_kept(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client:
        first = await held_up(gateway, client, tenant)
        gateway.stop("postgres")
        try:
            answer = await first
        finally:
            gateway.start_postgres()
        assert answer.status_code == 200
        [row] = await settled(gateway, tenant)
        assert (row["request_id"], row["state"]) == (request_id(answer), "completed")

        async def is_told() -> bool:
            return code(await post(client)) == "idempotent_result_elsewhere"

        await until(is_told)
    await settled(gateway, tenant)
