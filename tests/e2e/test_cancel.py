"""A tenant stops its own request by its id: what its client, the Router and the ledger see of it."""

import asyncio
import os
import sys
from collections import Counter
from typing import Any

import httpx
import httpx2
import pytest
from openai import AsyncOpenAI

from authz.principal import Metering
from quota.limit import concurrent_requests
from tests.e2e import callers
from tests.e2e.running import BODY, open_request, router_end, running
from tests.support.gateway import PEPPER, ROOMY, Gateway, Tenant, until

METERING = pytest.mark.parametrize("metering", list(Metering))
HTTP = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
INFER = {"model": "m", "input": "hello"}


def _cancel(client: httpx.AsyncClient, request_id: str) -> Any:
    return client.post(f"/v1/requests/{request_id}/cancel")


async def _row(gateway: Gateway, tenant: Tenant, request_id: str) -> dict[str, Any]:
    """The one row of a request; its slot is free."""

    async def found() -> list[dict[str, Any]]:
        return [row for row in await gateway.rows(tenant) if row["request_id"] == request_id]

    rows = await until(found)

    async def is_free() -> bool:
        return await gateway.slots_held(tenant) == 0

    await until(is_free)
    assert len(rows) == 1
    return rows[0]


def _cancelled(row: dict[str, Any], cause: str = "client_cancel") -> None:
    assert (row["state"], row["cause"]) == ("cancelled", cause)


@METERING
@HTTP
@pytest.mark.parametrize("after", [1, 2, 9])
async def test_a_stream_that_is_cancelled_ends_everywhere(
    gateway: Gateway, *, metering: Metering, http2: bool, after: int
) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(3), metering=metering)
    async with gateway.client(tenant, http2=http2) as client, running(client) as request:
        await request.seen(after)
        async with gateway.client(tenant) as other:
            answer = await _cancel(other, request.request_id)
        await request.ended()
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["object"], told["id"]) == ("request", request.request_id)
    assert (told["state"], told["cause"], told["cancelling"]) == ("cancelled", "client_cancel", False)
    if metering is Metering.INLINE:
        assert (request.broken, request.last_error) == (False, "request_cancelled")
    else:
        assert request.broken
    assert await router_end(gateway, request.request_id) == "client_closed"
    row = await _row(gateway, tenant, request.request_id)
    _cancelled(row)
    seen = await gateway.seen(request.request_id)
    assert seen is not None
    assert after <= row["output_tokens"] <= seen["events_written"]
    assert (row["usage_source"], row["input_tokens"]) == ("estimated", row["input_estimate"])
    assert (told["tokens"]["output"], told["tokens"]["input"]) == (row["output_tokens"], row["input_tokens"])


@METERING
@HTTP
@pytest.mark.parametrize("body", [BODY, INFER], ids=["stream", "json"])
async def test_before_the_answer_has_begun_the_client_is_told(
    gateway: Gateway, *, metering: Metering, http2: bool, body: dict[str, Any]
) -> None:
    tenant = await gateway.tenant(*ROOMY[:2], concurrent_requests(3), metering=metering)
    path = "/v1/infer" if body is INFER else "/v1/chat/completions"
    silent = {"x-demo-fault": "hang"}
    async with (
        gateway.client(tenant, http2=http2) as client,
        running(client, path=path, body=body, headers=silent) as request,
    ):
        request_id = await open_request(gateway, tenant)

        async def at_the_router() -> bool:
            return await gateway.seen(request_id) is not None

        await until(at_the_router)
        async with gateway.client(tenant) as other:
            answer = await _cancel(other, request_id)
        await request.ended()
    assert answer.status_code == 200, answer.text
    assert (request.status, request.error, request.broken) == (499, "request_cancelled", False)
    assert await router_end(gateway, request_id) in {"client_closed", "cancelled"}
    row = await _row(gateway, tenant, request_id)
    _cancelled(row)
    assert row["output_tokens"] == 0


@METERING
async def test_a_silent_stream_is_cancelled_too(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    stalled = {"x-demo-fault": "stall-mid-stream", "x-demo-events": "8", "x-demo-interval-ms": "1"}
    async with gateway.client(tenant) as client, running(client, headers=stalled) as request:
        await request.seen(4)
        assert (await _cancel(client, request.request_id)).status_code == 200
        await request.ended()
    assert await router_end(gateway, request.request_id) == "client_closed"
    _cancelled(await _row(gateway, tenant, request.request_id))


@pytest.mark.parametrize(
    "way", ["DELETE /v1/infer/{}", "POST /v1/responses/{}/cancel", "POST /v1/responses/resp_{}/cancel"]
)
async def test_every_path_that_clients_know_cancels(gateway: Gateway, way: str) -> None:
    tenant = await gateway.tenant()
    method, path = way.format("{}").split()
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(1)
        answer = await client.request(method, path.format(request.request_id))
        await request.ended()
    assert answer.status_code == 200, answer.text
    assert request.request_id in answer.json()["id"]
    _cancelled(await _row(gateway, tenant, request.request_id))


async def test_openais_sdk_can_cancel(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with (
        gateway.client(tenant) as client,
        AsyncOpenAI(
            api_key=tenant.key, base_url=f"{gateway.url}/v1", http_client=httpx2.AsyncClient(verify=gateway.tls)
        ) as openai,
        running(client) as request,
    ):
        await request.seen(2)
        found = await openai.responses.cancel(f"resp_{request.request_id}")
        await request.ended()
    assert (found.id, found.status, found.output) == (f"resp_{request.request_id}", "cancelled", [])
    assert found.usage is not None
    assert found.usage.output_tokens >= 2


async def test_cancelling_again_changes_nothing_and_says_the_same(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(1)
        first = await _cancel(client, request.request_id)
        await request.ended()
        second = await _cancel(client, request.request_id)
        row = await _row(gateway, tenant, request.request_id)  # by now Redis may have forgotten it
        third = await _cancel(client, request.request_id)
    _cancelled(row)
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 200]
    assert first.json()["tokens"] == second.json()["tokens"] == third.json()["tokens"]


@METERING
async def test_many_who_cancel_at_once_cancel_it_once(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(3)
        answers = await asyncio.gather(*(_cancel(client, request.request_id) for _ in range(20)))
        await request.ended()
    assert Counter(answer.status_code for answer in answers) == {200: 20}
    _cancelled(await _row(gateway, tenant, request.request_id))


async def test_what_has_ended_is_told_by_its_state(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        whole = await client.post("/v1/infer", json=INFER)
        failed = await client.post("/v1/infer", json=INFER, headers={"x-demo-status": "500"})
        ended = {"completed": whole.headers["x-request-id"], "failed": failed.headers["x-request-id"]}
        for state, request_id in ended.items():
            await gateway.row(request_id)
            answer = await _cancel(client, request_id)
            assert answer.status_code == 409
            error = answer.json()["error"]
            assert (error["code"], error["details"]["state"]) == ("request_ended", state)
            assert answer.headers["x-should-retry"] == "false"


@METERING
async def test_a_cancel_that_races_the_end_agrees_with_the_row(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    seen = Counter[str]()
    async with gateway.client(tenant) as client:
        answers = dict(await asyncio.gather(*(_race(client, tenant, events) for events in range(1, 41))))
    for request_id, answer in answers.items():
        row = await _row(gateway, tenant, request_id)
        seen[row["state"]] += 1
        if answer.status_code == 200:
            _cancelled(row)
        else:
            assert answer.status_code == 409, answer.text
            assert answer.json()["error"]["details"] == {"state": row["state"], "cause": row["cause"]}
            assert row["state"] == "completed"
    assert seen.total() == 40


async def _race(client: httpx.AsyncClient, tenant: Tenant, events: int) -> tuple[str, httpx.Response]:
    """A cancel sent with the last events of a stream."""
    del tenant
    headers = {"x-demo-events": str(events), "x-demo-interval-ms": "3"}
    async with running(client, headers=headers) as request:
        await request.seen(max(events - 1, 1))
        answer = await _cancel(client, request.request_id)
        await request.ended()
    return request.request_id, answer


async def test_nobody_cancels_for_another_tenant_and_unknown_ids_are_unknown(gateway: Gateway) -> None:
    tenant, stranger = await gateway.tenant(), await gateway.tenant()
    async with gateway.client(tenant) as client, gateway.client(stranger) as other, running(client) as request:
        await request.seen(1)
        for request_id in (request.request_id, "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11", "no id", "resp_"):
            answer = await other.post(f"/v1/requests/{request_id}/cancel")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_request")
        await request.seen(request.events + 3)
        assert (await _cancel(client, request.request_id)).status_code == 200


async def test_a_key_without_the_scope_cannot_cancel(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    caller = await callers.key(gateway, tenant, scopes=("inference:text",))
    async with caller.client(gateway) as client, running(client) as request:
        await request.seen(1)
        answer = await _cancel(client, request.request_id)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
        await request.seen(request.events + 3)


async def test_an_operator_stops_all_of_a_tenant_or_principal(gateway: Gateway) -> None:
    tenant, bystander = await gateway.tenant(), await gateway.tenant()
    second = await callers.key(gateway, tenant)
    async with (
        gateway.client(tenant) as client,
        second.client(gateway) as by_second,
        gateway.client(bystander) as by_bystander,
        running(client) as one,
        running(by_second) as two,
        running(by_bystander) as three,
    ):
        for request in (one, two, three):
            await request.seen(1)
        assert await _command(gateway, "cancel", "--principal", f"key_{second.key_id}", "--wait") == _asked(1)
        await two.ended()
        await one.seen(one.events + 2)
        assert await _command(gateway, "cancel", "--tenant", tenant.id, "--wait") == _asked(1)
        await one.ended()
        await three.seen(three.events + 2)
        assert await _command(gateway, "cancel", three.request_id, "--wait") == _asked(1)
        await three.ended()
        refused = await client.post(f"/v1/requests/{one.request_id}/cancel")
    for who, request in ((tenant, one), (tenant, two), (bystander, three)):
        _cancelled(await _row(gateway, who, request.request_id), "admin_cancel")
    assert refused.json()["error"]["details"] == {"state": "cancelled", "cause": "admin_cancel"}
    assert await _command(gateway, "cancel", "--tenant", tenant.id) == "Asked to stop: 0 requests."


def _asked(count: int) -> str:
    return f"Asked to stop: {count} request{'' if count == 1 else 's'}."


async def _command(gateway: Gateway, *words: str) -> str:
    env = {**os.environ, "DATABASE_URL": gateway.dsn, "REDIS_URL": gateway.redis.url, "GATEWAY_KEY_PEPPER": PEPPER}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", *words),
        env=env,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    text, _ = await process.communicate()
    assert process.returncode == 0, text.decode()
    return text.decode().strip()
