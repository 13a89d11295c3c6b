"""Does the Router's word on its decision and its cost reach the row and the limits, and never the client?"""

import asyncio
import json
from typing import Any

import httpx
import pytest

from authz.principal import Metering
from quota.limit import Limit, Unit, Window, limit_name
from tests.support.gateway import Gateway, Tenant, until

MESSAGES = [{"role": "user", "content": "Explain gravity"}]
STREAMING: dict[str, dict[str, Any]] = {
    "/v1/infer": {"input": "Explain gravity"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Explain gravity"},
    "/v1/responses": {"input": "Explain gravity"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 100},
}
ALL = STREAMING | {"/v1/embeddings": {"input": "Explain gravity"}}
DECISION = {"provider": "acme", "model": "m-large", "strategy": "cheapest", "seen": ["a", None, 0.5]}
COST = {"total_usd": "0.0012341", "input_usd": 0.001}
QUICK = {"x-demo-interval-ms": "0", "x-demo-usage": "100,50"}
WORDS = {"x-demo-decision": json.dumps(DECISION), "x-demo-cost": json.dumps(COST)}
COMMENTS = {"x-demo-words": "comment"}

METERING = pytest.mark.parametrize("metering", list(Metering))


async def _asked(
    gateway: Gateway, tenant: Tenant, path: str, *, stream: bool = False, **steering: str
) -> httpx.Response:
    body = {"model": "m", **ALL[path]} | ({"stream": True} if stream else {})
    headers = {f"x-demo-{name}": value for name, value in steering.items()}
    async with gateway.client(tenant) as client:
        answer = await client.post(path, json=body, headers=QUICK | WORDS | headers)
    assert answer.status_code == 200, answer.text
    return answer


async def _row(gateway: Gateway, tenant: Tenant, request_id: str) -> dict[str, Any]:
    """The columns of a request's row, JSON read."""

    async def found() -> dict[str, Any] | None:
        return next((row for row in await gateway.rows(tenant) if row["request_id"] == request_id), None)

    row = await until(found)
    assert row is not None
    return {
        name: json.loads(value) if name in {"routing_snapshot", "actual_cost"} else value for name, value in row.items()
    }


async def _told_to_the_row_alone(gateway: Gateway, tenant: Tenant, answer: httpx.Response) -> None:
    assert not [name for name in answer.headers if name.startswith("x-router")]
    assert "x-router" not in answer.text
    row = await _row(gateway, tenant, answer.headers["x-request-id"])
    assert (row["routing_snapshot"], row["actual_cost"]) == (DECISION, COST)
    assert row["cost_micros"] == 1235, "rounded up"
    assert (row["state"], row["usage_source"]) == ("completed", "exact")


@METERING
async def test_the_words_in_an_answers_headers_reach_its_row_alone(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)

    async def shown(path: str, *, stream: bool) -> None:
        answer = await _asked(gateway, tenant, path, stream=stream)
        await _told_to_the_row_alone(gateway, tenant, answer)

    await asyncio.gather(
        *(shown(path, stream=False) for path in ALL), *(shown(path, stream=True) for path in STREAMING)
    )


@METERING
@pytest.mark.parametrize("split", [1, 100_000])
async def test_the_words_in_a_streams_comments_reach_its_row_alone(
    gateway: Gateway, *, split: int, metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)

    async def shown(path: str) -> None:
        answer = await _asked(gateway, tenant, path, stream=True, words="comment", split=str(split), events="3")
        await _told_to_the_row_alone(gateway, tenant, answer)

    await asyncio.gather(*(shown(path) for path in STREAMING))


@METERING
async def test_the_comments_of_others_pass(gateway: Gateway, metering: Metering) -> None:
    tenant = await gateway.tenant(metering=metering)
    answer = await _asked(gateway, tenant, "/v1/chat/completions", stream=True, words="comment", pings="3", events="5")
    assert answer.text.count(": ping\n\n") == 3
    assert answer.text.count("data: ") == 6
    await _told_to_the_row_alone(gateway, tenant, answer)


@METERING
@pytest.mark.parametrize("words", [{}, {"words": "comment"}], ids=["headers", "comments"])
async def test_what_is_no_decision_and_no_cost_is_kept_from_the_client_and_believed_by_nobody(
    gateway: Gateway, *, words: dict[str, str], metering: Metering
) -> None:
    tenant = await gateway.tenant(metering=metering)
    answer = await _asked(gateway, tenant, "/v1/infer", stream=True, decision="[1", cost='{"total_usd":-1}', **words)
    assert not [name for name in answer.headers if name.startswith("x-router")]
    assert "x-router" not in answer.text
    record = await gateway.row(answer.headers["x-request-id"])
    assert record.ending.routing_snapshot == ""
    # By the tokens: 100 in, 50 out, of a model without rates.
    assert record.ending.charges.cost == 2500


@METERING
@pytest.mark.parametrize("words", [{}, {"words": "comment"}], ids=["headers", "comments"])
async def test_a_limit_on_money_is_settled_by_what_it_cost(
    gateway: Gateway, *, words: dict[str, str], metering: Metering
) -> None:
    budget = Limit(
        name=limit_name(Unit.COST, Window.CALENDAR_DAY), unit=Unit.COST, window=Window.CALENDAR_DAY, ceiling=10_000
    )
    tenant = await gateway.tenant(budget, metering=metering)
    body = {"model": "m", "input": "hello", "stream": True, "max_tokens": 50}
    steering = {f"x-demo-{name}": value for name, value in words.items()}
    async with gateway.client(tenant) as client:
        for cost, used in (("0.0005", 500), (0.0094994, 10_000)):
            headers = QUICK | steering | {"x-demo-cost": json.dumps({"total_usd": cost})}
            answer = await client.post("/v1/infer", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            await gateway.row(answer.headers["x-request-id"])
            [shown] = (await client.get("/v1/limits")).json()["data"]
            assert shown["used"] == used
        refused = await client.post("/v1/infer", json=body)
    assert refused.status_code == 429
    assert refused.json()["error"]["details"]["limit"] == budget.name
