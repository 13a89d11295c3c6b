"""Does a limit in shadow mode refuse nobody, count all the same, and stay unseen by clients?"""

import itertools
from typing import Any

import httpx
import msgspec
import pytest

from quota.limit import Limit, Mode, Unit, Window, limit_name, requests_per_minute
from tests.e2e import callers
from tests.e2e.bodies import CHAT, MESSAGES, body
from tests.e2e.counted import counted
from tests.support.gateway import ROOMY, Gateway, streaming, until

# Each limit has a name of its own, by which the metric counts.
_SECONDS = itertools.count(1987)
USAGE = {"x-demo-usage": "40,60"}
USED = {Unit.REQUESTS: 1, Unit.INPUT_TOKENS: 40, Unit.OUTPUT_TOKENS: 60, Unit.TOKENS: 100, Unit.COST: 2200}
FAMILIES = ("x-ratelimit", "anthropic-ratelimit", "ratelimit")
ASKED = body(CHAT, "shadowed", max_tokens=50)


def shadowed(unit: Unit, ceiling: int, **more: Any) -> Limit:
    window = Window.LEASE if unit is Unit.CONCURRENT_REQUESTS else Window.SLIDING
    seconds = next(_SECONDS)
    name = limit_name(unit, window, seconds)
    return Limit(name=name, unit=unit, window=window, ceiling=ceiling, seconds=seconds, mode=Mode.SHADOW, **more)


async def shadow_refusals(gateway: Gateway, one: Limit) -> float:
    return await counted(gateway, "gateway_limit_refusals_total", limit=one.name, mode="shadow")


async def shown(client: httpx.AsyncClient, one: Limit) -> dict[str, Any]:
    """How the limit stands."""
    listed = (await client.get("/v1/limits")).json()["data"]
    [found] = [each for each in listed if each["name"] == one.name]
    return dict(found)


async def until_counted(gateway: Gateway, one: Limit, expected: float) -> None:
    async def reached() -> bool:
        return await shadow_refusals(gateway, one) >= expected

    await until(reached)
    assert await shadow_refusals(gateway, one) == expected


@pytest.mark.parametrize("unit", list(USED))
async def test_it_refuses_nobody_and_counts_all(gateway: Gateway, unit: Unit) -> None:
    one = shadowed(unit, USED[unit])
    tenant = await gateway.tenant(*ROOMY, one)
    before = await shadow_refusals(gateway, one)
    async with gateway.client(tenant) as client:
        for _ in range(3):
            answer = await client.post(CHAT, json=ASKED, headers=USAGE)
            assert answer.status_code == 200
            await gateway.row(answer.headers["x-request-id"])
        found = await shown(client, one)
    assert (found["mode"], found["used"], found["reserved"], found["left"]) == ("shadow", 3 * USED[unit], 0, 0)
    # The first would have passed.
    await until_counted(gateway, one, before + 2)


async def test_slots_in_shadow_mode_are_taken_beyond_the_ceiling(gateway: Gateway) -> None:
    one = shadowed(Unit.CONCURRENT_REQUESTS, 1)
    tenant = await gateway.tenant(*ROOMY[:2], one)
    before = await shadow_refusals(gateway, one)
    long = {"x_demo_events": "200", "x_demo_interval_ms": "50"}
    async with (
        gateway.client(tenant) as client,
        streaming(client, {}, **long) as (_, first),
        streaming(client, {}, **long) as (_, second),
    ):
        await anext(first)
        await anext(second)
        assert (await shown(client, one))["reserved"] == 2
        assert (await client.post(CHAT, json=ASKED)).status_code == 200
    await until_counted(gateway, one, before + 2)


async def test_a_request_that_it_could_never_hold_passes(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*ROOMY, shadowed(Unit.TOKENS, 1), shadowed(Unit.REQUESTS, 0))
    async with gateway.client(tenant) as client:
        assert (await client.post(CHAT, json=ASKED)).status_code == 200


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith(FAMILIES)}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_it_is_not_told(gateway: Gateway, path: str) -> None:
    hidden = (shadowed(Unit.REQUESTS, 1), shadowed(Unit.TOKENS, 1))
    asked = body(path, "shadowed", max_tokens=50)
    async with gateway.client(await gateway.tenant(*hidden)) as client:
        for _ in range(2):
            answer = await client.post(path, json=asked)
            assert (answer.status_code, told(answer)) == (200, {})
    async with gateway.client(await gateway.tenant(requests_per_minute(5), *hidden)) as client:
        answer = await client.post(path, json=asked)
    assert not any(one.name in str(told(answer)) for one in hidden)
    assert answer.headers["ratelimit-policy"] == '"requests_per_minute";q=5;w=60'
    assert not any("tokens" in name for name in told(answer))


async def test_beside_it_limits_refuse_as_ever_and_are_named(gateway: Gateway) -> None:
    one = shadowed(Unit.REQUESTS, 0, priority=9)
    tenant = await gateway.tenant(requests_per_minute(1), one)
    async with gateway.client(tenant) as client:
        assert (await client.post(CHAT, json=ASKED)).status_code == 200
        refused = await client.post(CHAT, json=ASKED)
        assert refused.status_code == 429
        assert refused.json()["error"]["details"]["limit"] == "requests_per_minute"
        found = await shown(client, one)
    assert found["used"] + found["reserved"] == 1, "who is refused takes nothing of it"


async def test_when_it_is_enforced_what_it_has_counted_counts(gateway: Gateway) -> None:
    one = shadowed(Unit.REQUESTS, 2)
    tenant = await gateway.tenant()
    await callers.change_tenant(gateway, tenant, limits=(one,))
    async with gateway.client(tenant) as client:
        for _ in range(3):
            assert (await client.post(CHAT, json=ASKED)).status_code == 200
        enforced = msgspec.structs.replace(one, mode=Mode.ENFORCE)
        await callers.change_tenant(gateway, tenant, limits=(enforced,))
        await callers.everywhere(client, "rate_limit_exceeded")
        refused = await client.post(CHAT, json=ASKED)
    assert refused.json()["error"]["details"]["used"] >= 3
