"""Does the first request of a fresh key pass when its limits can hold it, and is it told when they never can?"""

import asyncio
import itertools
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest

from quota.limit import Limit, Unit, Window, limit_name
from tests.e2e.bodies import CHAT, EMBEDDINGS, INFER, MESSAGES, body
from tests.support.gateway import Gateway

MAX_TOKENS = 40
PATHS = (INFER, CHAT, MESSAGES, EMBEDDINGS)
# The default prices of a token, in micro-dollars.
INPUT_PRICE, OUTPUT_PRICE = 10, 30
WINDOWS = [(Window.SLIDING, 60), (Window.CALENDAR_DAY, 0)]
UNITS = (Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS, Unit.TOKENS, Unit.COST)

paths = pytest.mark.parametrize("path", PATHS)
units = pytest.mark.parametrize("unit", UNITS)


def limit(unit: Unit, ceiling: int, window: Window = Window.CALENDAR_DAY, seconds: int = 0, **more: Any) -> Limit:
    name = limit_name(unit, window, seconds)
    return Limit(name=name, unit=unit, window=window, ceiling=ceiling, seconds=seconds, **more)


def encoded(path: str, max_tokens: int | None) -> bytes:
    """A body for a model of which nothing is learned yet."""
    return msgspec.json.encode(body(path, f"m-{uuid4().hex[:8]}", max_tokens=max_tokens))


def demand(unit: Unit, body: bytes, output: int) -> int:
    """What a request is counted for before it has run: a token for four bytes."""
    given = -(-len(body) // 4)
    return {
        Unit.INPUT_TOKENS: given,
        Unit.OUTPUT_TOKENS: output,
        Unit.TOKENS: given + output,
        Unit.COST: given * INPUT_PRICE + output * OUTPUT_PRICE,
    }[unit]


async def first(gateway: Gateway, path: str, asked: bytes, *limits: Limit) -> httpx.Response:
    tenant = await gateway.tenant(*limits)
    async with gateway.client(tenant) as client:
        return await client.post(path, content=asked, headers={"content-type": "application/json"})


@paths
@units
async def test_a_ceiling_that_just_covers_a_request_lets_it_pass(gateway: Gateway, path: str, unit: Unit) -> None:
    asked, output = encoded(path, MAX_TOKENS), 0 if path == EMBEDDINGS else MAX_TOKENS
    ceiling = demand(unit, asked, output)
    for window, seconds in WINDOWS:
        answer = await first(gateway, path, asked, limit(unit, ceiling, window, seconds))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", [INFER, CHAT])
@units
async def test_without_a_maximum_a_ceiling_that_covers_the_input_is_enough(
    gateway: Gateway, path: str, unit: Unit
) -> None:
    asked = encoded(path, None)
    # An answer is at least one token.
    ceiling = max(1, demand(unit, asked, 0))
    for window, seconds in WINDOWS:
        answer = await first(gateway, path, asked, limit(unit, ceiling, window, seconds))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "unit"),
    # Embeddings have no output.
    [case for case in itertools.product(PATHS, UNITS) if case != (EMBEDDINGS, Unit.OUTPUT_TOKENS)],
)
async def test_what_can_never_fit_is_told_so(gateway: Gateway, path: str, unit: Unit) -> None:
    asked, output = encoded(path, MAX_TOKENS), 0 if path == EMBEDDINGS else MAX_TOKENS
    whole = demand(unit, asked, output)
    tight = [limit(unit, whole - 1, window, seconds) for window, seconds in WINDOWS]
    # The window would hold it, but not at once.
    tight.append(limit(unit, 10 * whole, Window.SLIDING, 60, burst=whole - 1))
    for one in tight:
        answer = await first(gateway, path, asked, one)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (400, "exceeds_limit", "invalid_request_error")
        assert error["details"].items() >= {"limit": one.name, "demanded": whole, "used": 0}.items()
        assert "retry-after" not in answer.headers
        assert str(whole - 1) in error["message"]
        assert await gateway.seen(answer.headers["x-request-id"]) is None


@pytest.mark.parametrize("unit", [Unit.INPUT_TOKENS, Unit.TOKENS, Unit.COST])
async def test_without_a_maximum_a_ceiling_below_the_input_is_told(gateway: Gateway, unit: Unit) -> None:
    asked = encoded(CHAT, None)
    answer = await first(gateway, CHAT, asked, limit(unit, demand(unit, asked, 0) - 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "exceeds_limit")


@units
async def test_without_a_maximum_a_limit_that_is_used_up_lets_nobody_pass(gateway: Gateway, unit: Unit) -> None:
    """A request without a maximum makes do with the room left, but not with none."""
    asked = encoded(CHAT, None)
    tenant = await gateway.tenant(limit(unit, demand(unit, asked, 10)))
    async with gateway.client(tenant) as client:
        slow = {"content-type": "application/json", "x-demo-delay-ms": "1500"}
        answers = await asyncio.gather(*(client.post(CHAT, content=asked, headers=slow) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 429, 429, 429, 429]
