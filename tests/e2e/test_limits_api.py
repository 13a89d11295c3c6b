"""Does `/v1/limits` show a caller its own limits, with the numbers that requests are refused by?"""

import re
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest

from quota.limit import Dimension, Limit, concurrent_requests, requests_per_minute, tokens_per_day
from store.database import opened
from tests.e2e import callers, owners
from tests.e2e.bodies import CHAT, INFER, body
from tests.e2e.callers import Caller
from tests.support.gateway import Gateway, Tenant, streaming, until
from tests.support.oidc import OidcIssuer

PATH = "/v1/limits"
ASKED = body(CHAT, max_tokens=100)
USAGE = {"x-demo-usage": "10,20"}
LIMITS = (requests_per_minute(3), tokens_per_day(10_000), concurrent_requests(5))


async def shown(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    answer = await client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


async def by_name(client: httpx.AsyncClient, **query: str) -> dict[str, dict[str, Any]]:
    found = {one["name"]: one for one in await shown(client, **query)}
    assert len(found) == len(await shown(client, **query)), "no two of these share a name"
    return found


async def settled(gateway: Gateway, client: httpx.AsyncClient) -> httpx.Response:
    answer = await client.post(CHAT, json=ASKED, headers=USAGE)
    assert answer.status_code == 200, answer.text
    await gateway.row(answer.headers["x-request-id"])
    return answer


def remaining(answer: httpx.Response) -> dict[str, int]:
    found = re.findall(r'"([^"]+)";r=(\d+)', answer.headers["ratelimit"])
    return {name: int(left) for name, left in found}


async def _caller(gateway: Gateway, issuer: OidcIssuer, tenant: Tenant, kind: str) -> Caller:
    match kind:
        case "key":
            return await callers.key(gateway, tenant)
        case "session":
            return await callers.session(gateway, await callers.key(gateway, tenant))
        case "jwt":
            return await callers.subject(issuer, tenant)
        case _:
            return await callers.workload(gateway, tenant)


@pytest.mark.parametrize("kind", ["key", "session", "jwt", "certificate"])
async def test_every_kind_of_caller_sees_the_numbers_it_is_refused_by(
    gateway: Gateway, issuer: OidcIssuer, kind: str
) -> None:
    caller = await _caller(gateway, issuer, await gateway.tenant(*LIMITS), kind)
    async with caller.client(gateway) as client:
        fresh = await by_name(client)
        assert [(one["used"], one["reserved"]) for one in fresh.values()] == [(0, 0)] * 3
        answers = [await settled(gateway, client) for _ in range(3)]
        found = await by_name(client)
        refused = await client.post(CHAT, json=ASKED)
    assert {name: one["ceiling"] for name, one in found.items()} == {
        "requests_per_minute": 3,
        "tokens_per_day": 10_000,
        "concurrent_requests": 5,
    }
    assert {name: (one["used"], one["reserved"], one["left"]) for name, one in found.items()} == {
        "requests_per_minute": (3, 0, 0),
        "tokens_per_day": (90, 0, 9_910),
        "concurrent_requests": (0, 0, 5),
    }
    assert refused.status_code == 429
    assert refused.json()["error"]["details"]["used"] == found["requests_per_minute"]["used"]
    assert remaining(refused) == {name: one["left"] for name, one in found.items()}
    assert int(answers[-1].headers["x-ratelimit-remaining-requests"]) == found["requests_per_minute"]["left"]


async def test_when_it_resets_agrees_with_the_headers(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*LIMITS)
    async with gateway.client(tenant) as client:
        assert all(one["resets_at"] is None for one in await shown(client))
        answer = await settled(gateway, client)
        found = await by_name(client)
    told = dict(re.findall(r'"([^"]+)";r=\d+;t=(\d+)', answer.headers["ratelimit"]))
    for name in ("requests_per_minute", "tokens_per_day"):
        one = found[name]
        # The request itself has taken some time since.
        assert 0 <= int(told[name]) - one["resets_in_ms"] / 1000 < 15
        away = datetime.fromisoformat(one["resets_at"]) - datetime.now(UTC)
        assert abs(away.total_seconds() - one["resets_in_ms"] / 1000) < 15
    assert found["concurrent_requests"]["resets_at"] is None


async def test_a_running_request_is_shown_as_reserved(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*LIMITS)
    long = {"x_demo_events": "1000", "x_demo_interval_ms": "20"}
    async with gateway.client(tenant) as client:
        async with streaming(client, {"max_tokens": 700}, **long) as (answer, lines):
            await anext(lines)
            found = await by_name(client)
            assert remaining(answer) == {name: one["left"] for name, one in found.items()}
        assert (found["concurrent_requests"]["reserved"], found["requests_per_minute"]["reserved"]) == (1, 1)
        assert found["tokens_per_day"]["reserved"] > 700
        assert {one["used"] for one in found.values()} == {0}

        async def ended() -> bool:
            return not any(one["reserved"] for one in await shown(client))

        await until(ended)
        assert (await by_name(client))["requests_per_minute"]["used"] == 1


async def test_of_others_only_what_is_shared_is_shown(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        organization = await owners.organization(pool, requests_per_minute(50))
        mine = await owners.tenant(pool, tokens_per_day(1000), of=organization)
        theirs = await owners.tenant(pool, tokens_per_day(7777), concurrent_requests(33), of=organization)
        strange = await owners.tenant(pool, requests_per_minute(4444))
        my_key = await owners.another_key(pool, mine, concurrent_requests(2))
    for other in (theirs, strange, mine):
        async with gateway.client(other) as client:
            await settled(gateway, client)
    async with gateway.client(my_key) as client:
        found = await by_name(client)
    assert {name: (one["per"], one["ceiling"], one["used"]) for name, one in found.items()} == {
        # Of its organization, both tenants together.
        "requests_per_minute": (["organization"], 50, 2),
        # Of its tenant, the other key's.
        "tokens_per_day": (["tenant"], 1000, 30),
        "concurrent_requests": (["principal"], 2, 0),
    }
    async with gateway.client(mine) as client:
        assert set(await by_name(client)) == {"requests_per_minute", "tokens_per_day"}, "another key has limits"


async def test_a_route_and_a_model_say_which_is_meant(gateway: Gateway) -> None:
    limits: tuple[Limit, ...] = (
        requests_per_minute(9),
        msgspec.structs.replace(requests_per_minute(5), route=CHAT),
        msgspec.structs.replace(tokens_per_day(2000), model="gpt-*"),
        msgspec.structs.replace(concurrent_requests(4), per=(Dimension.MODEL,)),
    )
    tenant = await gateway.tenant(*limits)
    async with gateway.client(tenant) as client:
        asked = body(CHAT, "gpt-5", max_tokens=100)
        answer = await client.post(CHAT, json=asked, headers=USAGE)
        await gateway.row(answer.headers["x-request-id"])
        everything = await shown(client)
        chat = await by_name(client, route=CHAT, model="gpt-5")
        infer = await by_name(client, route=INFER, model="claude")
    assert sorted((one["name"], one["route"], one["model"]) for one in everything if one["route"] or one["model"]) == [
        ("requests_per_minute", CHAT, None),
        ("tokens_per_day", None, "gpt-*"),
    ]
    [slots] = [one for one in everything if one["name"] == "concurrent_requests"]
    assert (slots["numbers_with"], slots["used"], slots["left"]) == (["model"], None, None)
    assert {name: (one["ceiling"], one["used"], one["left"]) for name, one in chat.items()} == {
        "requests_per_minute": (5, 1, 4),
        "tokens_per_day": (2000, 30, 1970),
        "concurrent_requests": (4, 0, 4),
    }
    assert remaining(answer).keys() == chat.keys()
    assert {name: (one["ceiling"], one["used"]) for name, one in infer.items()} == {
        "requests_per_minute": (9, 0),
        "concurrent_requests": (4, 0),
    }


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "missing_credentials"), ({"authorization": "Bearer igw_test_wrong"}, "invalid_api_key")],
    ids=["none", "wrong"],
)
async def test_nobody_sees_limits_without_a_credential(gateway: Gateway, headers: dict[str, str], code: str) -> None:
    async with gateway.client() as client:
        answer = await client.get(PATH, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)


async def test_looking_takes_no_room(gateway: Gateway) -> None:
    tenant = await gateway.tenant(requests_per_minute(1), concurrent_requests(1))
    async with gateway.client(tenant) as client:
        for _ in range(5):
            assert (await client.get(PATH)).status_code == 200
        assert (await client.post(CHAT, json=ASKED)).status_code == 200
