"""What a tenant has used: through the public listener and on the command line, the same numbers."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from typer.testing import CliRunner

from sidecar.cli import app
from tests.support.gateway import PEPPER, Gateway, Tenant

PATH = "/v1/usage"
MESSAGES = [{"role": "user", "content": "hello"}]
REQUESTS = (
    ("/v1/chat/completions", {"model": "m", "messages": MESSAGES, "max_tokens": 100}, {"x-demo-usage": "10,20"}),
    ("/v1/chat/completions", {"model": "large", "messages": MESSAGES, "max_tokens": 100}, {"x-demo-usage": "1000,500"}),
    ("/v1/infer", {"model": "m", "input": "hello"}, {"x-demo-usage": "7,8"}),
    ("/v1/infer", {"model": "m", "input": "hello"}, {"x-demo-status": "500"}),
)


async def use(gateway: Gateway, tenant: Tenant) -> None:
    async with gateway.client(tenant) as client:
        for path, body, steering in REQUESTS:
            answer = await client.post(path, json=body, headers={"x-demo-interval-ms": "0", **steering})
            await gateway.row(answer.headers["x-request-id"])


def commanded(gateway: Gateway, *words: str) -> Any:
    """What the command says, as JSON."""
    env = {"DATABASE_URL": gateway.dsn, "GATEWAY_KEY_PEPPER": PEPPER}
    result = CliRunner().invoke(app, [*words, "--json"], env=env)
    assert (result.exit_code, result.exception) == (0, None), result.output
    return json.loads(result.stdout)


async def asked(client: httpx.AsyncClient, **query: str) -> Any:
    answer = await client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_listener_and_the_command_say_the_same(gateway: Gateway) -> None:
    tenant, other = await gateway.tenant(), await gateway.tenant()
    await use(gateway, tenant)
    await use(gateway, other)
    since = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")

    async def command(*words: str) -> Any:
        return await asyncio.to_thread(commanded, gateway, "usage", "--since", since, *words)

    [of_tenant] = [one for one in await command("--group-by", "tenant") if one["group"] == tenant.id]
    assert (of_tenant["requests"], of_tenant["completed"]) == (4, 3)
    assert (of_tenant["input_tokens"], of_tenant["output_tokens"]) == (1017, 528)
    assert of_tenant["cost_micros"] > 0
    async with gateway.client(tenant) as client:
        for group_by in ("day", "model", "principal", "route"):
            found = await asked(client, group_by=group_by, **{"from": since})
            sums = [without_dollars(one) for one in found["data"]]
            assert sums == await command("--tenant", tenant.id, "--group-by", group_by)
            assert {**without_dollars(found["total"]), "group": tenant.id} == of_tenant


def without_dollars(sums: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sums.items() if name != "cost_dollars"}


async def test_usage_is_a_table_too(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    await use(gateway, tenant)
    async with gateway.client(tenant) as client:
        answer = await client.get(PATH, params={"format": "csv", "group_by": "model"})
        whole = await asked(client, group_by="model")
    names, *rows = csv.reader(io.StringIO(answer.text))
    assert [row[:2] for row in rows] == [["model", "large"], ["model", "m"], ["total", ""]]
    assert dict(zip(names, rows[-1], strict=True)) | {"by": "", "group": ""} == {
        "by": "",
        **{name: str(value) for name, value in whole["total"].items()},
    }


async def test_a_wrong_parameter_is_named(gateway: Gateway) -> None:
    async with gateway.client(await gateway.tenant()) as client:
        answer = await client.get(PATH, params={"group_by": "tenant"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_parameter", "group_by")
