"""Do limits hold over both workers, and is a refusal something that a client can act on?"""

import asyncio
import math
from typing import Any

import httpx
import pytest

from quota.limit import concurrent_requests, requests_per_minute, tokens_per_day
from tests.support.gateway import ROOMY, Gateway, streaming, until

INFER = {"model": "m", "input": "hello"}


async def _statuses(client: httpx.AsyncClient, count: int, body: dict[str, Any]) -> list[int]:
    answers = await asyncio.gather(*(client.post("/v1/infer", json=body) for _ in range(count)))
    return [answer.status_code for answer in answers]


async def test_requests_per_minute_hold_over_both_workers(gateway: Gateway) -> None:
    tenant = await gateway.tenant(requests_per_minute(20), *ROOMY[1:])
    async with gateway.client(tenant) as client:
        statuses = await _statuses(client, 60, INFER)
        refused = await client.post("/v1/infer", json=INFER)
    assert statuses.count(200) == 20
    assert statuses.count(429) == 40
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert error["details"] == {
        "limit": "requests_per_minute",
        "unit": "requests",
        "per": "tenant",
        "window": "sliding",
        "seconds": 60,
        "ceiling": 20,
        "used": 20,
    }
    assert "requests_per_minute" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert int(refused.headers["retry-after"]) == math.ceil(int(refused.headers["retry-after-ms"]) / 1000)
    assert await gateway.seen(refused.headers["x-request-id"]) is None


async def test_tokens_are_reserved_before_and_settled_after(gateway: Gateway) -> None:
    tenant = await gateway.tenant(ROOMY[0], tokens_per_day(1000), ROOMY[2])
    body = {**INFER, "max_tokens": 900}
    async with gateway.client(tenant) as client:
        first = await client.post("/v1/infer", json=body, headers={"x-demo-usage": "10,20"})
        assert first.status_code == 200
        await gateway.row(first.headers["x-request-id"])
        # 30 tokens are used; another 900 fit only because the reservation was replaced by them.
        second = await client.post("/v1/infer", json=body, headers={"x-demo-usage": "10,500"})
        assert second.status_code == 200
        await gateway.row(second.headers["x-request-id"])
        third = await client.post("/v1/infer", json=body)
    assert third.status_code == 429
    error = third.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert third.headers["x-should-retry"] == "false"
    assert {"limit": "tokens_per_day", "ceiling": 1000, "used": 540, "time_zone": "UTC"}.items() <= error[
        "details"
    ].items()


async def test_concurrent_reservations_never_pass_the_token_ceiling(gateway: Gateway) -> None:
    tenant = await gateway.tenant(ROOMY[0], tokens_per_day(1100), ROOMY[2])
    body = {**INFER, "max_tokens": 190}
    async with gateway.client(tenant) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/infer", json=body, headers={"x-demo-delay-ms": "1500"}) for _ in range(20))
        )
    assert [answer.status_code for answer in answers].count(200) == 5


async def test_a_request_without_max_tokens_makes_do_with_the_room_left(gateway: Gateway) -> None:
    tenant = await gateway.tenant(ROOMY[0], tokens_per_day(100), ROOMY[2])
    async with gateway.client(tenant) as client:
        assert (await client.post("/v1/infer", json=INFER)).status_code == 200


async def test_a_request_that_can_never_fit_is_told_so(gateway: Gateway) -> None:
    tenant = await gateway.tenant(ROOMY[0], tokens_per_day(100), ROOMY[2])
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json={**INFER, "max_tokens": 5000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "exceeds_limit"
    assert answer.json()["error"]["details"]["limit"] == "tokens_per_day"
    assert "retry-after" not in answer.headers


async def test_concurrent_requests_hold_for_the_life_of_a_stream(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(2))
    long = {"x_demo_events": "100", "x_demo_interval_ms": "100"}
    async with gateway.client(tenant) as client:
        async with streaming(client, {}, **long) as (_, one), streaming(client, {}, **long) as (_, two):
            await anext(one)
            await anext(two)
            refused = await client.post("/v1/infer", json=INFER)
            assert refused.status_code == 429
            assert refused.json()["error"]["details"]["limit"] == "concurrent_requests"
            assert int(refused.headers["retry-after"]) >= 1

        async def admitted() -> bool:
            return (await client.post("/v1/infer", json=INFER)).status_code == 200

        await until(admitted)


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_one_request_after_another_never_meets_its_own_slot(gateway: Gateway, *, http2: bool) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(1))
    async with gateway.client(tenant, http2=http2) as client:
        for _ in range(30):
            assert (await client.post("/v1/infer", json=INFER)).status_code == 200


async def test_failed_requests_give_their_tokens_back(gateway: Gateway) -> None:
    tenant = await gateway.tenant(ROOMY[0], tokens_per_day(1000), ROOMY[2])
    body = {**INFER, "max_tokens": 900}
    async with gateway.client(tenant) as client:
        for headers in ({"x-demo-status": "500"}, {"x-demo-fault": "close-before-headers"}, {}):
            answer = await client.post("/v1/infer", json=body, headers=headers)
            assert answer.status_code != 429
            await gateway.row(answer.headers["x-request-id"])
    assert answer.status_code == 200
