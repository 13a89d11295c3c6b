"""What a tenant is told of its requests through the public listener: running, ended, all of them, and no others."""

import csv
import io
import json
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, Tenant, streaming, until

PATH = "/v1/requests"
CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100}
QUICK = {"x-demo-interval-ms": "0", "x-demo-usage": "10,20"}
SLOW = {"x_demo_events": "2000", "x_demo_interval_ms": "20"}


async def ended(gateway: Gateway, client: httpx.AsyncClient, **changes: Any) -> str:
    """A request that has its row; gives its id."""
    answer = await client.post(CHAT, json=ASKED | changes, headers=QUICK)
    assert answer.status_code == 200, answer.text
    request_id = answer.headers["x-request-id"]
    await gateway.row(request_id)
    return request_id


async def shown(client: httpx.AsyncClient, request_id: str) -> dict[str, Any]:
    answer = await client.get(f"{PATH}/{request_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def listed(client: httpx.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(answer: httpx.Response, status: int, code: str, param: str | None = None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


async def test_a_request_is_known_at_every_moment_of_its_life(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, gateway.client(tenant) as asking:
        async with streaming(client, {"max_tokens": 700}, **SLOW) as (answer, lines):
            request_id = answer.headers["x-request-id"]
            await anext(lines)
            running = await shown(asking, request_id)
            assert running["state"] in {"admitted", "dispatched", "streaming"}
            assert (running["ended_at"], running["tokens"], running["cost_micros"]) == (None, None, None)
            assert (running["path"], running["stream"], running["plan"]) == (CHAT, True, tenant.plan)
            [in_list] = (await listed(asking))["data"]
            assert in_list["id"] == request_id
            assert [one["id"] for one in (await listed(asking, state=running["state"]))["data"]] in ([request_id], [])

        seen = []

        async def is_over() -> bool:
            # Never unknown, neither in Redis nor on its way into the ledger.
            seen.append(await shown(asking, request_id))
            return seen[-1]["ended_at"] is not None

        await until(is_over)
        row = await gateway.row(request_id)
        after = await shown(asking, request_id)
    assert after == seen[-1]
    assert (after["state"], after["cause"], after["tokens"]["source"]) == (
        "cancelled",
        "client_disconnect",
        "estimated",
    )
    assert (after["tokens"]["output"], after["cost_micros"]) == (row.ending.output_tokens, row.ending.charges.cost)
    assert (after["received_at"], after["model"]) == (running["received_at"], running["model"])


async def test_of_a_foreign_request_nothing_is_told(gateway: Gateway) -> None:
    mine, theirs = await gateway.tenant(), await gateway.tenant()
    async with gateway.client(mine) as client, gateway.client(theirs) as stranger:
        request_id = await ended(gateway, client)
        async with streaming(client, {}, **SLOW) as (answer, lines):
            await anext(lines)
            for foreign in (request_id, answer.headers["x-request-id"]):
                assert (await shown(client, foreign))["id"] == foreign
                refused(await stranger.get(f"{PATH}/{foreign}"), 404, "unknown_request")
            assert (await listed(stranger))["data"] == []
            assert (await stranger.get(PATH, params={"format": "jsonl"})).text == ""
        for unknown in ("x", "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11"):
            refused(await client.get(f"{PATH}/{unknown}"), 404, "unknown_request")


async def test_pages_have_every_request_once_while_others_come(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        expected = [await ended(gateway, client) for _ in range(4)]
        async with streaming(client, {}, **SLOW) as (answer, lines):
            await anext(lines)
            expected.append(answer.headers["x-request-id"])
            found, query = [], {"limit": 2}
            while True:
                page = await listed(client, **query)
                found += [one["id"] for one in page["data"]]
                await ended(gateway, client)
                if page["next_cursor"] is None:
                    break
                query["cursor"] = page["next_cursor"]
    assert found == expected[::-1]


async def test_requests_are_exported_in_every_format(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        expected = [await ended(gateway, client, model=model) for model in ("=1+1", "m", "m")]

        async def text(format_: str, **query: str) -> str:
            answer = await client.get(PATH, params={"format": format_, **query})
            assert answer.status_code == 200, answer.text
            return answer.text

        names, *rows = csv.reader(io.StringIO(await text("csv")))
        assert [row[names.index("id")] for row in rows] == expected
        assert [row[names.index("model")] for row in rows] == ["'=1+1", "m", "m"]
        lines = [json.loads(line) for line in (await text("jsonl", model="m")).splitlines()]
        assert lines == [await shown(client, request_id) for request_id in expected[1:]]
        events = json.loads(await text("cloudevents"))
        assert [event["subject"] for event in events] == expected
        assert {event["type"] for event in events} == {"inference-gateway.request.completed.v1"}
        by_header = await client.get(PATH, headers={"accept": "text/csv"})
        assert by_header.headers["content-type"].startswith("text/csv")


@pytest.mark.parametrize(("name", "value"), [("limit", "0"), ("cursor", "x"), ("state", "running"), ("order", "asc")])
async def test_a_wrong_parameter_is_named(gateway: Gateway, name: str, value: str) -> None:
    tenant: Tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:
        refused(await client.get(PATH, params={name: value}), 400, "invalid_parameter", name)


async def test_nobody_asks_without_a_credential(gateway: Gateway) -> None:
    async with gateway.client() as client:
        for path in (PATH, f"{PATH}/3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11", "/v1/usage"):
            refused(await client.get(path), 401, "missing_credentials")
