"""Is every unit counted over a window of every kind, for whoever or whatever it is to be counted apart for?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from quota.applied import counted_per
from quota.limit import Dimension, Limit, Unit, Window, limit_name
from store.database import Pool, opened
from tests.e2e import owners
from tests.e2e.bodies import CHAT, INFER, body
from tests.support.gateway import Gateway, Tenant, until

ORGANIZATION, TENANT, PRINCIPAL, ROUTE, MODEL = Dimension
# What a request uses, by the default rates: 40 tokens in at 10 micro-dollars, 60 out at 30.
USAGE = {"x-demo-usage": "40,60", "x-demo-interval-ms": "0"}
USED = {
    Unit.REQUESTS: 1,
    Unit.INPUT_TOKENS: 40,
    Unit.OUTPUT_TOKENS: 60,
    Unit.TOKENS: 100,
    Unit.CONCURRENT_REQUESTS: 1,
    Unit.COST: 2200,
}
MAX_TOKENS = 50
HOUR = 3600


@dataclass(frozen=True, slots=True)
class Scope:
    """Who carries a limit, what it says it is counted per, and who or what else has room of its own under it."""

    carrier: Dimension
    per: tuple[Dimension, ...]
    apart: frozenset[Dimension]


SCOPES = {
    "organization": Scope(ORGANIZATION, (), frozenset()),
    "organization-by-plan": Scope(TENANT, (ORGANIZATION,), frozenset()),
    "tenant": Scope(TENANT, (), frozenset({TENANT})),
    "principal": Scope(TENANT, (PRINCIPAL,), frozenset({TENANT, PRINCIPAL})),
    "route": Scope(TENANT, (ROUTE,), frozenset({TENANT, ROUTE})),
    "model": Scope(TENANT, (MODEL,), frozenset({TENANT, MODEL})),
    "organization+model": Scope(ORGANIZATION, (MODEL,), frozenset({MODEL})),
    "principal+route+model": Scope(TENANT, (PRINCIPAL, ROUTE, MODEL), frozenset({TENANT, PRINCIPAL, ROUTE, MODEL})),
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: by whose key, and for what."""

    tenant: Tenant
    model: str
    path: str = CHAT

    async def send(self, client: httpx.AsyncClient, **steering: str) -> httpx.Response:
        return await client.post(
            self.path,
            json=body(self.path, self.model, max_tokens=MAX_TOKENS),
            headers=self.tenant.headers | USAGE | steering,
        )


def model() -> str:
    """A model that nobody else asks for, so that nothing is learned of it."""
    return f"m-{uuid4().hex[:8]}"


def limit(unit: Unit, window: Window, ceiling: int, *, seconds: int = 0, **more: Any) -> Limit:
    return Limit(
        name=limit_name(unit, window, seconds), unit=unit, window=window, ceiling=ceiling, seconds=seconds, **more
    )


def limits_of(unit: Unit, per: tuple[Dimension, ...]) -> list[Limit]:
    """A limit over a window of each kind that has room for just what one request uses."""
    used = USED[unit]
    if unit is Unit.CONCURRENT_REQUESTS:
        return [limit(unit, Window.LEASE, used, per=per)]
    calendar = (Window.CALENDAR_HOUR, Window.CALENDAR_DAY, Window.CALENDAR_MONTH)
    return [
        limit(unit, Window.SLIDING, used, seconds=HOUR, per=per),
        # The window has room for two of them, but not at once.
        limit(unit, Window.SLIDING, 2 * used, seconds=HOUR + 1, burst=used, per=per),
        *(limit(unit, window, used, per=per) for window in calendar),
    ]


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def code_of(one: Limit) -> str:
    budget = one.unit is Unit.COST or one.window in {Window.CALENDAR_DAY, Window.CALENDAR_MONTH}
    return "insufficient_quota" if budget else "rate_limit_exceeded"


async def until_used(client: httpx.AsyncClient, ask: Ask, used: int) -> dict[str, Any]:
    """Ask until what is refused tells of so much use: what ran before is settled."""

    async def told() -> dict[str, Any] | None:
        answer = await ask.send(client)
        assert answer.status_code == 429, answer.text
        return error(answer) if error(answer)["details"]["used"] == used else None

    found = await until(told)
    assert found is not None
    return found


async def variations(pool: Pool, base: Ask, organization: str) -> dict[Dimension, Ask]:
    """The same request with one thing about it different."""
    neighbour = await owners.tenant(pool, on=base.tenant.plan, of=organization)
    return {
        TENANT: Ask(neighbour, base.model),
        PRINCIPAL: Ask(await owners.another_key(pool, base.tenant), base.model),
        ROUTE: Ask(base.tenant, base.model, INFER),
        MODEL: Ask(base.tenant, model()),
    }


@contextlib.asynccontextmanager
async def using_up(client: httpx.AsyncClient, base: Ask, one: Limit) -> AsyncIterator[None]:
    """A request takes what there is of the limit: for good, or for as long as it runs."""
    if one.unit is not Unit.CONCURRENT_REQUESTS:
        answer = await base.send(client)
        assert answer.status_code == 200, answer.text
        yield
        return
    stream = body(base.path, base.model, stream=True)
    headers = base.tenant.headers | {"x-demo-events": "1000", "x-demo-interval-ms": "20"}
    async with client.stream("POST", base.path, json=stream, headers=headers) as running:
        assert running.status_code == 200
        yield


async def hold_for(pool: Pool, client: httpx.AsyncClient, one: Limit, scope: Scope) -> None:
    """Use the limit up with one request, and see who else is refused by it."""
    by_organization = scope.carrier is ORGANIZATION
    organization = await owners.organization(pool, *((one,) if by_organization else ()))
    plan = await owners.plan(pool, *(() if by_organization else (one,)))
    base = Ask(await owners.tenant(pool, on=plan, of=organization), model())
    others = await variations(pool, base, organization)
    async with using_up(client, base, one):
        refused = await until_used(client, base, USED[one.unit])
        assert refused["code"] == code_of(one)
        told = refused["details"]
        assert (told["limit"], told["unit"], told["window"]) == (one.name, one.unit, one.window)
        assert told["per"] == ",".join(counted_per(one, scope.carrier))
        asked = [each for name, each in others.items() if name not in scope.apart]
        for answer in await asyncio.gather(*(each.send(client) for each in asked)):
            assert (answer.status_code, error(answer)["details"]["limit"]) == (429, one.name)
        apart = [others[name] for name in scope.apart]
        for answer in await asyncio.gather(*(each.send(client) for each in apart)):
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("scope", SCOPES)
async def test_each_unit_is_counted_over_each_window_for_whom_it_is_to_be(
    gateway: Gateway, scope: str, unit: Unit
) -> None:
    found = SCOPES[scope]
    async with opened(gateway.dsn) as pool, gateway.client() as client:
        await asyncio.gather(*(hold_for(pool, client, one, found) for one in limits_of(unit, found.per)))
