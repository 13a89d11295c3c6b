"""Does the end of a request become a signed webhook, and can its tenant's administrator do it all over HTTP?"""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e import callers
from tests.e2e.callers import INFER, Caller, code
from tests.support.gateway import Gateway, until
from tests.support.webhook_endpoint import Endpoint, Got, listening, status

PATH = "/v1/webhooks"


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with listening() as endpoint:
        yield endpoint


@pytest.fixture
async def admin(gateway: Gateway) -> Caller:
    return await callers.key(gateway, await gateway.tenant(), scopes=("admin", "inference:text"))


async def _made(client: httpx.AsyncClient, endpoint: Endpoint, **body: Any) -> dict[str, Any]:
    answer = await client.post(PATH, json={"url": endpoint.url, **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _asked(client: httpx.AsyncClient, **headers: str) -> str:
    answer = await client.post("/v1/infer", json=INFER, headers=headers)
    return str(answer.headers["x-request-id"])


async def _got(endpoint: Endpoint, request_id: str, times: int = 1) -> list[Got]:
    async def found() -> list[Got]:
        got = [one for one in endpoint.got if one.request_id == request_id]
        return got if len(got) >= times else []

    return await until(found)


async def test_the_end_of_a_request_is_told_signed_and_once(
    gateway: Gateway, endpoint: Endpoint, admin: Caller
) -> None:
    async with admin.client(gateway) as client:
        made = await _made(client, endpoint)
        request_ids = [await _asked(client) for _ in range(5)]
        for request_id in request_ids:
            [got] = await _got(endpoint, request_id)
            content = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.{got.body.decode()}"
            key = base64.b64decode(made["secret"].removeprefix("whsec_"))
            mac = base64.b64encode(hmac.new(key, content.encode(), hashlib.sha256).digest()).decode()
            assert got.headers["webhook-signature"] == f"v1,{mac}"
            row = await gateway.row(request_id)
            assert f'"output_tokens":{row.ending.output_tokens}' in got.body.decode()
            assert f'"tenant_id":"{admin.tenant.id}"' in got.body.decode()
    assert endpoint.times() == dict.fromkeys(request_ids, 1)


async def test_what_did_not_arrive_is_shown_and_sent_again_on_request(
    gateway: Gateway, endpoint: Endpoint, admin: Caller
) -> None:
    endpoint.answers.append(status(410))
    async with admin.client(gateway) as client:
        webhook_id = (await _made(client, endpoint))["id"]
        request_id = await _asked(client)
        await _got(endpoint, request_id)

        async def disabled() -> dict[str, Any] | None:
            shown: dict[str, Any] = (await client.get(f"{PATH}/{webhook_id}")).json()
            return shown if shown["state"] == "disabled" else None

        shown = await until(disabled)
        assert shown is not None
        assert [(one["request_id"], one["last_status"]) for one in shown["deliveries"]] == [(request_id, 410)]
        answer = await client.post(f"{PATH}/{webhook_id}/replay", json={"request_id": request_id})
        assert answer.json()["queued"] == 1, answer.text
        first, second = await _got(endpoint, request_id, times=2)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert (await client.delete(f"{PATH}/{webhook_id}")).status_code == 204
        assert (await client.get(PATH)).json() == {"data": []}


async def test_a_webhook_is_told_of_its_own_tenants_requests_and_of_what_it_asked_for(
    gateway: Gateway, endpoint: Endpoint, admin: Caller
) -> None:
    other = await callers.key(gateway, await gateway.tenant(), scopes=("admin", "inference:text"))
    async with admin.client(gateway) as client, other.client(gateway) as foreign:
        await _made(client, endpoint, states=["failed"])
        for asking in (foreign, client):
            await gateway.row(await _asked(asking))
        failed = await _asked(client, **{"x-demo-status": "500"})
        assert (await gateway.row(failed)).ending.state == "failed"
        await _got(endpoint, failed)
    assert endpoint.times() == {failed: 1}


async def test_only_an_administrator_may(gateway: Gateway, admin: Caller) -> None:
    plain = await callers.key(gateway, admin.tenant, scopes=("inference:text", "requests:read"))
    async with plain.client(gateway) as client:
        for method, path in (("GET", PATH), ("POST", PATH), ("DELETE", f"{PATH}/x"), ("POST", f"{PATH}/x/replay")):
            assert await code(client, method, path, json={}) == "insufficient_scope"
