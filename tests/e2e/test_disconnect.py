"""The client is gone: is the Router told, the slot free, the usage counted once, and the row right?"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from authz.principal import Metering
from quota.limit import concurrent_requests
from tests.support.gateway import ROOMY, Gateway, Tenant, streaming, until
from tests.support.h2_client import http2_post

INFER = {"model": "m", "input": "hello"}
METERING = pytest.mark.parametrize("metering", list(Metering))
LONG = {"x_demo_events": "500", "x_demo_interval_ms": "50"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}


async def _close_http1(gateway: Gateway, tenant: Tenant, after: int) -> str:
    async with (
        gateway.client(tenant) as client,
        streaming(client, {}, **LONG) as (response, events),
    ):
        for _ in range(after):
            await anext(events)
    return str(response.headers["x-request-id"])


async def _close_http2(gateway: Gateway, tenant: Tenant, after: int) -> str:
    async with http2_post(gateway, tenant, "/v1/chat/completions", CHAT, **LONG) as stream:
        await stream.read_events(after)
    return stream.headers["x-request-id"]


async def _reset_http2(gateway: Gateway, tenant: Tenant, after: int) -> str:
    async with http2_post(gateway, tenant, "/v1/chat/completions", CHAT, **LONG) as stream:
        await stream.read_events(after)
        await stream.reset()
        request_id = stream.headers["x-request-id"]
        # The connection stays open: it is the reset that ends the request.
        assert await _router_saw_it_end(gateway, request_id) == "client_closed"
    return request_id


async def _router_saw_it_end(gateway: Gateway, request_id: str) -> str:
    async def ended() -> str | None:
        seen = await gateway.seen(request_id)
        return seen["end"] if seen and seen["ended_at"] else None

    return str(await until(ended))


@METERING
@pytest.mark.parametrize("leave", [_close_http1, _close_http2, _reset_http2])
@pytest.mark.parametrize("after", [1, 2, 7, 20])
async def test_leaving_in_mid_stream_ends_everything(
    gateway: Gateway,
    *,
    leave: Callable[[Gateway, Tenant, int], Awaitable[str]],
    after: int,
    metering: Metering,
) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(1), metering=metering)
    request_id = await leave(gateway, tenant, after)
    assert await _router_saw_it_end(gateway, request_id) == "client_closed"
    async with gateway.client(tenant) as client:

        async def slot_is_free() -> bool:
            return (await client.post("/v1/infer", json=INFER)).status_code == 200

        await until(slot_is_free)
    record = await gateway.row(request_id)
    assert (record.ending.state, record.ending.cause) == ("cancelled", "client_disconnect")
    assert record.ending.usage_source == "estimated"
    assert record.ending.input_tokens == record.admission.input_estimate
    # What was produced is counted: what the client read, and at most what the Router had written by then.
    seen = await gateway.seen(request_id)
    assert seen is not None
    assert after <= record.ending.output_tokens <= seen["events_written"]
    rows = [row for row in await gateway.rows(tenant) if row["request_id"] == request_id]
    assert len(rows) == 1


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_leaving_before_the_answer_cancels_it(gateway: Gateway, *, http2: bool) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(1))
    leaver = gateway.client(tenant, http2=http2)
    waiting = asyncio.create_task(leaver.post("/v1/infer", json=INFER, headers={"x-demo-fault": "hang"}))
    async with gateway.client(tenant) as client:

        async def one_is_running() -> bool:
            return await gateway.slots_held(tenant) == 1

        await until(one_is_running)
        assert (await client.post("/v1/infer", json=INFER)).status_code == 429
        waiting.cancel()
        await asyncio.wait([waiting])
        await leaver.aclose()

        async def slot_is_free() -> bool:
            return (await client.post("/v1/infer", json=INFER)).status_code == 200

        await until(slot_is_free)

    async def cancelled() -> bool:
        return any(row["state"] == "cancelled" for row in await gateway.rows(tenant))

    await until(cancelled)
    row = next(row for row in await gateway.rows(tenant) if row["state"] == "cancelled")
    assert (row["cause"], row["output_tokens"], row["usage_source"]) == ("client_disconnect", 0, "estimated")


@METERING
@pytest.mark.parametrize(
    ("fault", "cause"), [("reset-mid-stream", "upstream_reset"), ("close-mid-stream", "upstream_reset")]
)
async def test_a_router_that_breaks_off_is_told_apart(
    gateway: Gateway, fault: str, cause: str, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    headers = {"x-demo-fault": fault, "x-demo-events": "10", "x-demo-interval-ms": "5"}
    async with (
        gateway.client(tenant) as client,
        client.stream("POST", "/v1/infer", json={**INFER, "stream": True}, headers=headers) as response,
    ):
        with pytest.raises(Exception, match=r".+"):
            await response.aread()
    record = await gateway.row(response.headers["x-request-id"])
    assert (record.ending.state, record.ending.cause) == ("failed", cause)
    assert record.ending.usage_source == "estimated"
    assert 1 <= record.ending.output_tokens <= 5
