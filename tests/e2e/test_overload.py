"""While the Router is overloaded, are the lower plans refused first, and do they come back when it is well again?"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from store.database import opened
from tests.e2e import owners
from tests.e2e.bodies import CHAT, body
from tests.e2e.counted import counted
from tests.support.gateway import ROOMY, Gateway, running, until

LOW, HIGH = 1, 9
CLIENTS = 12
# A little beyond each target: what is cut at once is little, and soon back.
TARGETS = {"GATEWAY_OVERLOAD_FIRST_BYTE_SECONDS": "0.5", "GATEWAY_OVERLOAD_ERROR_SHARE": "0.97"}
OVERLOADS = {"slow": {"x-demo-delay-ms": "520"}, "failing": {"x-demo-status": "500"}}
CLIENT_ERRORS = ("400", "404", "422", "429")
# Enough of them for several seconds of judgement.
STORM = 240


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway of its own, that knows what an overload is."""
    with running(env=TARGETS) as gateway:
        yield gateway


@dataclass(slots=True)
class Crowd:
    """Clients of one plan that ask again and again; what they were answered, and how to steer the Router."""

    client: httpx.AsyncClient
    steering: dict[str, str] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)
    refused: list[httpx.Response] = field(default_factory=list)

    async def ask(self, path: str = CHAT) -> str:
        answer = await self.client.post(path, json=body(path, max_tokens=10), headers=self.steering)
        shed = answer.status_code == 503
        code = str(answer.json()["error"]["code"]) if shed else str(answer.status_code)
        self.codes[code] += 1
        if shed:
            self.refused.append(answer)
        return code

    async def press(self) -> None:
        """Ask until cancelled. Who was refused comes back a moment later."""
        while True:
            if await self.ask() == "overloaded":
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def crowds(gateway: Gateway) -> AsyncIterator[tuple[Crowd, Crowd]]:
    """The crowd of a low plan and of a high one."""
    async with opened(gateway.dsn) as pool:
        low, high = [
            await owners.tenant(pool, on=await owners.plan(pool, *ROOMY, priority=priority)) for priority in (LOW, HIGH)
        ]
    async with gateway.client(low) as one, gateway.client(high) as other:
        yield Crowd(one), Crowd(other)


@contextlib.asynccontextmanager
async def pressing(*crowds: Crowd) -> AsyncIterator[None]:
    """All of them ask meanwhile; a failure of one is the test's."""
    tasks = [asyncio.create_task(crowd.press()) for crowd in crowds for _ in range(CLIENTS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}


async def share(gateway: Gateway) -> float:
    return await counted(gateway, "gateway_shed_share_thousandths")


@pytest.mark.parametrize("kind", list(OVERLOADS))
async def test_the_low_plan_is_shed_and_comes_back(gateway: Gateway, kind: str) -> None:
    async with crowds(gateway) as (low, high):
        low.steering, high.steering = OVERLOADS[kind], OVERLOADS[kind]

        async def shed() -> bool:
            return len(low.refused) >= 3

        async with pressing(low, high):
            await until(shed, seconds=60.0)
        assert high.codes.total() > len(low.refused)
        assert not high.refused
        for answer in low.refused:
            assert answer.json()["error"]["code"] == "overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 5
            assert await gateway.seen(answer.headers["x-request-id"]) is None
        low.steering = high.steering = {}

        async def passes() -> bool:
            return {await low.ask() for _ in range(20)} == {"200"}

        await until(passes, seconds=60.0)
        await until(lambda: _is_over(gateway), seconds=60.0)
        assert await high.ask() == "200"


async def _is_over(gateway: Gateway) -> bool:
    return await share(gateway) == 0


async def test_a_storm_of_client_errors_sheds_nobody(gateway: Gateway) -> None:
    async with crowds(gateway) as (_, high), contextlib.AsyncExitStack() as stack:
        before = await _failed(gateway)
        storm = []
        for status in CLIENT_ERRORS:
            low, _ = await stack.enter_async_context(crowds(gateway))
            low.steering = {"x-demo-status": status}
            storm.append(low)

        async def passed() -> bool:
            return await _failed(gateway) >= before + STORM

        async with pressing(*storm):
            await until(passed, seconds=60.0)
            assert await share(gateway) == 0
        assert {code for low in storm for code in low.codes} == set(CLIENT_ERRORS)
        assert {await high.ask() for _ in range(5)} == {"200"}


async def _failed(gateway: Gateway) -> float:
    """How many requests the Router has answered with an error."""
    return await counted(gateway, "gateway_requests_settled_total", cause="upstream_error")
