"""Is everybody who watches a request told all its steps, once and in order, from any moment on, and nobody else's?"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from authz.principal import Metering
from tests.support.gateway import Gateway, Tenant, streaming, until

SLOW = {"x_demo_events": "400", "x_demo_interval_ms": "50"}
LIFE = ["admitted", "dispatched", "streaming", "completed"]
METERING = pytest.mark.parametrize("metering", list(Metering))


async def _watched(client: httpx.AsyncClient, request_id: str, **headers: str) -> list[dict[str, Any]]:
    """The events of a request to its end, as SSE."""
    found: list[dict[str, Any]] = []
    async with client.stream("GET", f"/v1/requests/{request_id}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                found.append(json.loads(line.removeprefix("data: ")))
                assert found[-1]["data"]["state"] == name
    return found


@asynccontextmanager
async def _socket(gateway: Gateway, tenant: Tenant, request_id: str) -> AsyncIterator[ClientConnection]:
    url = f"wss://127.0.0.1:{gateway.port}/ws/inference/{request_id}"
    async with connect(url, ssl=gateway.tls, additional_headers=tenant.headers, proxy=None) as socket:
        yield socket


def _states(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["state"] for event in events]


@METERING
async def test_a_stream_is_followed_to_its_end(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    async with (
        gateway.client(tenant) as client,
        streaming(client, {}, x_demo_events="20", x_demo_interval_ms="30") as (response, events),
    ):
        await anext(events)
        request_id = response.headers["x-request-id"]
        watching = asyncio.create_task(_watched(client, request_id))
        async with _socket(gateway, tenant, request_id) as socket:
            async for _ in events:
                pass
            by_socket = [json.loads(text) async for text in socket]
        by_sse = await watching
    assert _states(by_sse) == _states(by_socket) == LIFE
    assert by_sse == by_socket
    record = await gateway.row(request_id)
    assert by_sse[-1]["data"]["output_tokens"] == record.ending.output_tokens == 20
    assert {event["subject"] for event in by_sse} == {request_id}
    assert len({event["id"] for event in by_sse}) == len(by_sse)


async def test_a_request_that_has_ended_tells_the_same(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json={"model": "m", "input": "hello"})
        request_id = answer.headers["x-request-id"]
        await gateway.row(request_id)
        first, again = await _watched(client, request_id), await _watched(client, request_id)
        rest = await _watched(client, request_id, **{"last-event-id": first[0]["id"]})
    assert first == again
    assert _states(first) == ["admitted", "dispatched", "completed"]
    assert rest == first[1:]


async def test_the_end_of_a_request_whose_client_leaves_is_told(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as watcher:
        async with gateway.client(tenant) as client, streaming(client, {}, **SLOW) as (response, events):
            await anext(events)
            request_id = response.headers["x-request-id"]
            watching = asyncio.create_task(_watched(watcher, request_id))
            await anext(events)
        last = (await watching)[-1]["data"]
    assert (last["state"], last["cause"]) == ("cancelled", "client_disconnect")


async def test_who_comes_later_is_told_what_has_been_while_it_runs(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, streaming(client, {}, **SLOW) as (response, events):
        await anext(events)
        request_id = response.headers["x-request-id"]

        async def reported() -> bool:
            shown = (await client.get(f"/v1/requests/{request_id}")).json()
            return bool(shown["state"] == "streaming" and shown["first_event_at"] and shown["dispatched_at"])

        await until(reported)
        async with _socket(gateway, tenant, request_id) as socket:
            told = [json.loads(await socket.recv()) for _ in range(2)]
    assert _states(told) == ["admitted", "streaming"]


async def test_nobody_is_told_of_requests_that_are_not_theirs(gateway: Gateway) -> None:
    owner, stranger = await gateway.tenant(), await gateway.tenant()
    async with gateway.client(owner) as client, gateway.client(stranger) as foreign:
        answer = await client.post("/v1/infer", json={"model": "m", "input": "hello"})
        request_id = answer.headers["x-request-id"]
        await gateway.row(request_id)
        for wrong in (request_id, str(uuid4()), "no-id"):
            refused = await foreign.get(f"/v1/requests/{wrong}/events")
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_request")
            with pytest.raises(InvalidStatus) as denied:
                async with _socket(gateway, stranger, wrong):
                    pass
            assert denied.value.response.status_code == 404


async def test_who_stops_watching_leaves_nothing_behind(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, streaming(client, {}, **SLOW) as (response, events):
        await anext(events)
        request_id = response.headers["x-request-id"]
        for _ in range(3):
            async with _socket(gateway, tenant, request_id) as socket:
                assert json.loads(await socket.recv())["data"]["state"] == "admitted"
            watching = asyncio.create_task(_watched(client, request_id))
            await asyncio.wait([watching], timeout=0.2)
            watching.cancel()
            await asyncio.wait([watching])
        await anext(events)

    async def ended() -> bool:
        return (await gateway.row(request_id)).ending.state == "cancelled"

    await until(ended)


async def test_a_socket_needs_a_credential(gateway: Gateway) -> None:
    url = f"wss://127.0.0.1:{gateway.port}/ws/inference/{uuid4()}"
    with pytest.raises(InvalidStatus) as denied:
        async with connect(url, ssl=gateway.tls, proxy=None):
            pass
    assert denied.value.response.status_code == 401
