"""What one request may come to, by its plan: a runaway stream ends, in either way of metering."""

from typing import Any
from uuid import uuid4

import pytest

from authz import api_key
from authz.caps import Caps
from authz.principal import Metering
from store import api_keys, plans, tenants
from store.api_keys import NewKey
from store.database import opened
from store.tenants import NewTenant
from tests.e2e.running import BODY, router_end, running
from tests.support.gateway import PEPPER, ROOMY, TRAIL, Gateway, Tenant

METERING = pytest.mark.parametrize("metering", list(Metering))
# Each event goes out at once: the periodic entry of the access log, every five seconds, finds it long over.
ENDLESS = {"x-demo-fault": "endless", "x-demo-interval-ms": "5"}


async def _capped(gateway: Gateway, caps: Caps, metering: Metering = Metering.NATIVE) -> Tenant:
    name = f"c{uuid4().hex[:16]}"
    async with opened(gateway.dsn) as pool:
        await plans.put(pool, plans.Plan(name=name, limits=ROOMY, metering=metering, caps=caps), trail=TRAIL)
        made = await tenants.create(pool, NewTenant(name=name, organization=name, plan=name), trail=TRAIL)
        key = api_key.generate("test")
        new = NewKey(key=key, tenant_id=made.id, name=name)
        await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=TRAIL)
    return Tenant(made.id, key.text, key.id, name)


@METERING
@pytest.mark.parametrize("caps", [Caps(output_tokens=20), Caps(response_bytes=4000)], ids=["tokens", "bytes"])
async def test_a_stream_that_writes_too_much_is_ended(gateway: Gateway, metering: Metering, caps: Caps) -> None:
    tenant = await _capped(gateway, caps, metering)
    async with gateway.client(tenant) as client, running(client, headers=ENDLESS) as request:
        await request.ended()
    if metering is Metering.INLINE:
        assert (request.broken, request.last_error) == (False, "output_limit_reached")
    else:
        assert request.broken
    assert await router_end(gateway, request.request_id) == "client_closed"
    record = await gateway.row(request.request_id)
    assert (record.ending.state, record.ending.cause) == ("cancelled", "output_limit")
    assert record.ending.usage_source == "estimated"
    if metering is Metering.INLINE:
        # Exact: the cap, the few events that frame a stream, and the one that was too much.
        assert record.ending.output_tokens <= 20 + 10 or caps.response_bytes
        assert record.ending.response_bytes < 10_000
    assert record.ending.output_tokens >= 10


@METERING
async def test_a_stream_ends_at_its_deadline(gateway: Gateway, metering: Metering) -> None:
    tenant = await _capped(gateway, Caps(stream_seconds=1), metering)
    async with gateway.client(tenant) as client, running(client, headers=ENDLESS) as request:
        await request.ended()
    assert request.broken
    assert await router_end(gateway, request.request_id) == "client_closed"
    record = await gateway.row(request.request_id)
    assert (record.ending.state, record.ending.cause) == ("timed_out", "deadline")


@pytest.mark.parametrize(
    ("path", "named", "field"),
    [
        ("/v1/chat/completions", {"max_tokens": 101}, "max_tokens"),
        ("/v1/chat/completions", {"max_completion_tokens": 101}, "max_completion_tokens"),
        ("/v1/chat/completions", {"max_tokens": 51, "n": 2}, "max_tokens"),
        ("/v1/messages", {"max_tokens": 101}, "max_tokens"),
        ("/v1/responses", {"max_output_tokens": 101, "input": "x"}, "max_output_tokens"),
    ],
)
async def test_a_maximum_above_the_plans_is_refused(
    gateway: Gateway, path: str, named: dict[str, Any], field: str
) -> None:
    tenant = await _capped(gateway, Caps(output_tokens=100))
    async with gateway.client(tenant) as client:
        answer = await client.post(path, json={**BODY, "stream": False, **named})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    if path != "/v1/messages":
        assert (error["code"], error["param"]) == ("exceeds_limit", field)
    assert "100 tokens" in error["message"]
    assert await gateway.rows(tenant) == []


async def test_without_a_maximum_no_more_than_the_plans_is_reserved(gateway: Gateway) -> None:
    tenant = await _capped(gateway, Caps(output_tokens=30))
    async with gateway.client(tenant) as client:
        # A model of its own: of one that other tests asked, it may be known that it answers with less.
        answer = await client.post("/v1/chat/completions", json={**BODY, "model": "unheard-of", "stream": False})
        assert answer.status_code == 200
    record = await gateway.row(answer.headers["x-request-id"])
    assert (record.admission.output_reserved, record.admission.output_named) == (30, False)
