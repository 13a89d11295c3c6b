"""What does a request count for? Tokens on every path, by the weights of their model, and money."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import httpx
import pytest

from authz.principal import Metering
from extproc.record import UsageRecord
from quota.charges import Charges, Rates
from quota.limit import Limit, Unit, Window, limit_name
from quota.rate_card import ModelRates
from store import model_rates
from store.database import opened
from tests.e2e import owners
from tests.e2e.bodies import CHAT, EMBEDDINGS, INFER, MESSAGES, body
from tests.support.gateway import ROOMY, TRAIL, Gateway, until

QUICK = {"x-demo-interval-ms": "0"}
# 100 tokens in, 60 of them from a cache; 50 out, 20 of them never shown.
PARTS = QUICK | {"x-demo-usage": "100,50", "x-demo-cached-tokens": "60", "x-demo-reasoning-tokens": "20"}
RATES = Rates(
    input_weight=1000,
    cached_weight=100,
    output_weight=2000,
    reasoning_weight=3000,
    input_price=3_000_000,
    cached_price=300_000,
    output_price=15_000_000,
    reasoning_price=20_000_000,
)
_ALL_TOLD = Charges(requests=1, input_tokens=40 + 6, output_tokens=60 + 60, tokens=166, cost=120 + 18 + 450 + 400)
WEIGHED = {
    INFER: _ALL_TOLD,
    CHAT: _ALL_TOLD,
    # Its usage does not tell reasoning apart.
    MESSAGES: Charges(requests=1, input_tokens=40 + 6, output_tokens=100, tokens=146, cost=120 + 18 + 750),
    # Its usage tells the input alone.
    EMBEDDINGS: Charges(requests=1, input_tokens=100, tokens=100, cost=300),
}
BY_DEFAULT = Charges(requests=1, input_tokens=100, output_tokens=50, tokens=150, cost=1000 + 1500)

meterings = pytest.mark.parametrize("metering", list(Metering))
streams = pytest.mark.parametrize(
    ("path", "stream"),
    [(path, stream) for path in (INFER, CHAT, MESSAGES) for stream in (False, True)] + [(EMBEDDINGS, False)],
    ids=lambda value: value if isinstance(value, str) else ("stream" if value else "json"),
)


def limit(unit: Unit, ceiling: int, window: Window = Window.CALENDAR_DAY) -> Limit:
    return Limit(name=limit_name(unit, window), unit=unit, window=window, ceiling=ceiling)


async def used_up(
    gateway: Gateway, one: Limit, path: str, asked: dict[str, Any], *, steering: dict[str, str], metering: Metering
) -> dict[str, Any]:
    """How a tenant's second request is refused, when its first has been settled."""
    tenant = await gateway.tenant(one, metering=metering)
    async with gateway.client(tenant) as client:
        first = await client.post(path, json=asked, headers=steering)
        assert first.status_code == 200, first.text
        await gateway.row(first.headers["x-request-id"])
        second = await client.post(path, json=asked)
    assert second.status_code == 429, second.text
    error: dict[str, Any] = second.json()["error"]
    assert (error["code"], error["details"]["limit"]) == ("insufficient_quota", one.name)
    return error


@meterings
@streams
async def test_no_path_goes_around_a_limit_on_tokens(
    gateway: Gateway, path: str, metering: Metering, *, stream: bool
) -> None:
    used = {Unit.INPUT_TOKENS: 40, Unit.TOKENS: 40 if path == EMBEDDINGS else 100}
    if path != EMBEDDINGS:
        used[Unit.OUTPUT_TOKENS] = 60
    asked = body(path, f"m-{uuid4().hex[:8]}", max_tokens=50, stream=stream)
    steering = QUICK | {"x-demo-usage": "40,60"}

    async def held(unit: Unit) -> None:
        error = await used_up(gateway, limit(unit, used[unit]), path, asked, steering=steering, metering=metering)
        assert error["details"]["used"] == used[unit]

    await asyncio.gather(*(held(unit) for unit in used))


@pytest.fixture
async def weighed(gateway: Gateway) -> str:
    """A model with rates, which every worker knows."""
    model = f"w-{uuid4().hex[:8]}"
    async with opened(gateway.dsn) as pool:
        pattern = ModelRates(pattern=f"{model}*", rates=RATES, output_tokens=77)
        await model_rates.put(pool, pattern, trail=TRAIL)
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client:

        async def known() -> bool:
            rows = await asyncio.gather(*(row(gateway, client, INFER, body(INFER, model)) for _ in range(6)))
            return {one.admission.output_reserved for one in rows} == {77}

        await until(known)
    return model


async def row(
    gateway: Gateway, client: httpx.AsyncClient, path: str, asked: dict[str, Any], **steering: str
) -> UsageRecord:
    """The ledger's row of a request."""
    answer = await client.post(path, json=asked, headers={**PARTS, **steering})
    assert answer.status_code == 200, answer.text
    return await gateway.row(answer.headers["x-request-id"])


@streams
async def test_tokens_of_each_class_count_by_their_weight_and_cost_by_their_price(
    gateway: Gateway, weighed: str, path: str, *, stream: bool
) -> None:
    async def charged(metering: Metering, model: str) -> Charges:
        tenant = await gateway.tenant(metering=metering)
        async with gateway.client(tenant) as client:
            asked = body(path, model, max_tokens=50, stream=stream)
            return (await row(gateway, client, path, asked)).ending.charges

    found = await asyncio.gather(*(charged(metering, weighed) for metering in Metering))
    assert set(found) == {WEIGHED[path]}


async def test_limits_count_the_weighed_tokens(gateway: Gateway, weighed: str) -> None:
    # Reserved are 50 out at 2, or 50 at 15 micro-dollars, beside a few in.
    ceilings = {Unit.INPUT_TOKENS: 46, Unit.OUTPUT_TOKENS: 120, Unit.TOKENS: 166, Unit.COST: 988}
    asked = body(CHAT, weighed, max_tokens=50)

    async def held(unit: Unit) -> None:
        error = await used_up(
            gateway, limit(unit, ceilings[unit]), CHAT, asked, steering=PARTS, metering=Metering.NATIVE
        )
        assert error["details"]["used"] == ceilings[unit]

    await asyncio.gather(*(held(unit) for unit in ceilings))


async def test_what_is_reserved_goes_by_the_weights_too(gateway: Gateway, weighed: str) -> None:
    # 60 tokens out weigh 120.
    tenant = await gateway.tenant(limit(Unit.OUTPUT_TOKENS, 119))
    async with gateway.client(tenant) as client:
        answer = await client.post(CHAT, json=body(CHAT, weighed, max_tokens=60))
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["demanded"] == 120


async def test_a_months_budget_is_used_up(gateway: Gateway, weighed: str) -> None:
    async with opened(gateway.dsn) as pool:
        tenant = await owners.tenant(
            pool, *ROOMY, limit(Unit.COST, 2 * 988, Window.CALENDAR_MONTH), time_zone="America/New_York"
        )
    asked = body(CHAT, weighed, max_tokens=50)
    async with gateway.client(tenant) as client:
        for _ in range(2):
            found = await row(gateway, client, CHAT, asked)
            assert found.ending.charges.cost == 988
        refused = await client.post(CHAT, json=asked)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("insufficient_quota", "insufficient_quota")
    assert error["details"] == {
        "limit": "cost_per_month",
        "per": "tenant",
        "unit": "cost",
        "ceiling": 1976,
        "used": 1976,
        "window": "calendar_month",
        "time_zone": "America/New_York",
    }
    assert refused.headers["x-should-retry"] == "false"
    assert abs(int(refused.headers["retry-after"]) - _seconds_to_next_month("America/New_York")) <= 60


def _seconds_to_next_month(zone: str) -> float:
    now = datetime.now(ZoneInfo(zone))
    year, month = divmod(now.year * 12 + now.month, 12)
    following = datetime(year, month + 1, 1, tzinfo=ZoneInfo(zone))
    return (following.astimezone(UTC) - now.astimezone(UTC)).total_seconds()


async def test_a_model_without_rates_is_not_free(gateway: Gateway) -> None:
    tenant = await gateway.tenant(limit(Unit.COST, 2 * 2500 - 1))
    asked = body(CHAT, f"unpriced-{uuid4().hex}", max_tokens=50)
    async with gateway.client(tenant) as client:
        found = await row(gateway, client, CHAT, asked)
        assert found.ending.charges == BY_DEFAULT
        [shown] = (await client.get("/v1/limits")).json()["data"]
        assert (shown["used"], shown["left"]) == (2500, 2499)
