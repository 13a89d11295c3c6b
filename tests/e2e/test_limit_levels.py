"""Do the limits of all levels hold together, in one step, and is the one that matters most named?"""

import asyncio
from typing import Any

import httpx
import pytest

from quota.limit import Dimension, Limit, Unit, Window, limit_name, requests_per_minute, tokens_per_day
from store.database import opened
from tests.e2e import owners
from tests.e2e.bodies import CHAT, EMBEDDINGS, INFER, body
from tests.support.gateway import Gateway, Tenant


def requests(ceiling: int, seconds: int = 60, **more: Any) -> Limit:
    name = limit_name(Unit.REQUESTS, Window.SLIDING, seconds)
    return Limit(name=name, unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=ceiling, seconds=seconds, **more)


async def ask(client: httpx.AsyncClient, path: str = INFER, model: str = "m") -> dict[str, Any]:
    """The details of the refusal; nothing when there was none."""
    answer = await client.post(path, json=body(path, model))
    if answer.status_code == 200:
        return {}
    assert answer.status_code == 429, answer.text
    details: dict[str, Any] = answer.json()["error"]["details"]
    return details


async def passing(client: httpx.AsyncClient, path: str = INFER, model: str = "m", *, most: int = 10) -> int:
    """How many requests pass, one after another, until one is refused."""
    for count in range(most):
        if await ask(client, path, model):
            return count
    return most


async def used(client: httpx.AsyncClient) -> dict[tuple[str, str], int]:
    """What is used and reserved of each limit of the caller, by name and what it is counted per."""
    shown = (await client.get("/v1/limits", params={"route": INFER, "model": "m"})).json()["data"]
    return {(one["name"], ",".join(one["per"])): one["used"] + one["reserved"] for one in shown}


@pytest.mark.parametrize("own", [1, 4], ids=["tighter", "wider"])
async def test_a_tenants_own_limit_stands_in_place_of_its_plans(gateway: Gateway, own: int) -> None:
    async with opened(gateway.dsn) as pool:
        plan = await owners.plan(pool, requests(2), requests(3, 3600))
        tenant, other = await owners.tenant(pool, requests(own), on=plan), await owners.tenant(pool, on=plan)
    async with gateway.client(tenant) as client:
        # What it does not replace stays.
        assert await passing(client) == min(own, 3)
        assert (await ask(client))["ceiling"] == min(own, 3)
    async with gateway.client(other) as client:
        assert await passing(client) == 2


async def test_a_principals_own_limit_is_added(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(pool, requests(3))
        bound, loose = (
            await owners.another_key(pool, tenant, requests(1)),
            await owners.another_key(pool, tenant, requests(9)),
        )
    async with gateway.client(bound) as client:
        assert await passing(client) == 1
        assert (await ask(client))["per"] == "principal"
    async with gateway.client(loose) as client:
        assert await passing(client) == 2
        assert (await ask(client))["per"] == "tenant", "a key gets no more than its tenant"


async def test_a_limit_for_a_route_stands_in_place_of_the_one_for_all(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(pool, requests(1), requests(3, route=CHAT))
    async with gateway.client(tenant) as client:
        assert await passing(client, CHAT) == 3
        assert (await ask(client, CHAT))["route"] == CHAT
        # Those that it does not name share what is left to them.
        assert await passing(client, INFER) == 1
        assert await passing(client, EMBEDDINGS) == 0


async def test_of_limits_for_models_the_one_that_says_most_counts(gateway: Gateway) -> None:
    limits = requests(1), requests(2, model="gpt-*"), requests(3, model="gpt-5"), requests(4, model="gpt-5", route=CHAT)
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(pool, *limits)
    async with gateway.client(tenant) as client:
        assert await passing(client, CHAT, "gpt-5") == 4
        assert await passing(client, INFER, "gpt-5") == 3
        assert await passing(client, INFER, "gpt-4") == 2
        assert await passing(client, CHAT, "gpt-4o") == 0, "they share what their pattern has"
        assert await passing(client, INFER, "claude") == 1


NAMED = {
    "the longest of one priority": ((requests(1), requests(1, 3600), requests(1, 900)), "requests_per_hour"),
    "priority before length": ((requests(1, priority=5), requests(1, 3600)), "requests_per_minute"),
    "of the highest the longest": (
        (requests(1, priority=5), requests(1, 900, priority=5), requests(1, 3600, priority=4)),
        "requests_per_900s",
    ),
    "one that has no room, not one that has": (
        (requests(1), requests(5, 3600, priority=9)),
        "requests_per_minute",
    ),
}


@pytest.mark.parametrize(("limits", "named"), NAMED.values(), ids=NAMED)
async def test_of_several_that_refuse_the_tightest_is_named(
    gateway: Gateway, limits: tuple[Limit, ...], named: str
) -> None:
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(pool, *limits)
    async with gateway.client(tenant) as client:
        assert await passing(client) == 1
        assert (await ask(client))["limit"] == named


async def test_of_the_levels_the_one_that_holds_longest_is_named(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        organization = await owners.organization(pool, requests(1, 900))
        tenant = await owners.tenant(pool, requests(1, 3600), of=organization)
        key = await owners.another_key(pool, tenant, requests(1))
    async with gateway.client(key) as client:
        assert await passing(client) == 1
        assert (await ask(client)).items() >= {"limit": "requests_per_hour", "per": "tenant"}.items()


async def _crowd(gateway: Gateway, *of: Tenant) -> list[list[dict[str, Any]]]:
    """Twenty requests of each at once, and how each one's were answered."""
    clients = [gateway.client(one, http2=True) for one in of]
    try:
        answers = await asyncio.gather(*(ask(client) for client in clients for _ in range(20)))
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))
    return [list(answers[at : at + 20]) for at in range(0, len(answers), 20)]


async def test_two_keys_share_their_tenants_room_and_two_tenants_their_organizations(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        organization = await owners.organization(pool, requests(15))
        plan = await owners.plan(pool, requests(10))
        one = await owners.tenant(pool, on=plan, of=organization)
        same, other = await owners.another_key(pool, one), await owners.tenant(pool, on=plan, of=organization)
    first = await _crowd(gateway, one, same)
    assert sum(details == {} for of_key in first for details in of_key) == 10
    assert {details["per"] for of_key in first for details in of_key if details} == {"tenant"}
    [second] = await _crowd(gateway, other)
    assert second.count({}) == 5
    assert {details["per"] for details in second if details} == {"organization"}


async def test_who_is_refused_at_one_level_takes_nothing_at_any(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        organization = await owners.organization(pool, requests(1000), tokens_per_day(10**6))
        tenant = await owners.tenant(pool, requests(7), tokens_per_day(10**6), of=organization)
        key = await owners.another_key(pool, tenant, requests(3, per=(Dimension.ROUTE,)))
    [answers] = await _crowd(gateway, key)
    assert answers.count({}) == 3
    async with gateway.client(key) as client:
        held = await used(client)
    assert held["requests_per_minute", "principal,route"] == 3
    assert held["requests_per_minute", "tenant"] == held["requests_per_minute", "organization"] == 3
    assert held["tokens_per_day", "tenant"] == held["tokens_per_day", "organization"] > 0


async def test_a_request_that_one_level_can_never_hold_is_told_so_though_another_is_full(gateway: Gateway) -> None:
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(pool, requests_per_minute(1), tokens_per_day(500))
    async with gateway.client(tenant) as client:
        assert await passing(client) == 1
        answer = await client.post(INFER, json=body(INFER, max_tokens=501))
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["limit"] == "tokens_per_day"
