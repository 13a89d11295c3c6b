"""Do the limits hold in a storm? Hundreds of clients at once, every kind of end, processes killed, and then the sums.

What was admitted is compared with what the Router saw, what the ledger says and what Redis still holds.
"""

import asyncio
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from quota.limit import Limit, Unit, Window, concurrent_requests, limit_name, tokens_per_day
from tests.support.gateway import ROOMY, Gateway, Tenant, running, until

CLIENTS, ROUNDS = 510, 3
SLOTS, REQUESTS, TOKENS, COST = 10, 200, 12_000, 350_000
KILLS = ("sidecar.worker", "sidecar.recorder", "sidecar.worker", "sidecar.ledger_writer")
INFER = {"model": "m", "input": "hello", "max_tokens": 120}
_LOOK_SECONDS = 0.01
_PASSED = frozenset({200, 500, 503})


def _requests_per_hour(ceiling: int) -> Limit:
    """A window that no storm outlives."""
    return Limit(name="requests_per_hour", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=ceiling, seconds=3600)


def _cost_per_month(ceiling: int) -> Limit:
    return Limit(
        name=limit_name(Unit.COST, Window.CALENDAR_MONTH), unit=Unit.COST, window=Window.CALENDAR_MONTH, ceiling=ceiling
    )


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    """A gateway of its own, for it is shot at."""
    with running(workers=2) as gateway:
        yield gateway


@dataclass(slots=True)
class Storm:
    """The clients of one tenant: what each did, and what it was told."""

    gateway: Gateway
    tenant: Tenant
    seed: int
    told: Counter[str] = field(default_factory=Counter)
    most_slots: int = 0

    async def rage(self, clients: int) -> None:
        """Every client makes its requests, one after another, and all at once."""
        async with self.gateway.client(self.tenant) as client:
            await asyncio.gather(*(self._client(client, random.Random(self.seed + n)) for n in range(clients)))  # noqa: S311

    def watch_slots(self, over: threading.Event) -> None:
        """Look how many slots Redis says are held, from a thread of its own: the loop is busy with the clients."""
        pattern = f"igw1:*:counter:tenant:{self.tenant.id}/concurrent_requests"
        with closing(SyncRedis.from_url(self.gateway.redis.url)) as redis:
            while not over.wait(_LOOK_SECONDS):
                for key in redis.scan_iter(pattern, count=10_000):
                    self.most_slots = max(self.most_slots, int(redis.zcard(key)))

    async def _client(self, client: httpx.AsyncClient, dice: random.Random) -> None:
        for _ in range(ROUNDS):
            act = dice.choice((self._json, self._json, self._stream, self._leave, self._fail))
            try:
                self.told[await act(client, dice)] += 1
            except httpx.HTTPError as error:
                self.told[type(error).__name__] += 1

    async def _json(self, client: httpx.AsyncClient, dice: random.Random) -> str:
        headers = {"x-demo-delay-ms": str(dice.randrange(200)), "x-demo-usage": f"10,{dice.randrange(1, 200)}"}
        return str((await client.post("/v1/infer", json=INFER, headers=headers)).status_code)

    async def _stream(self, client: httpx.AsyncClient, dice: random.Random) -> str:
        async with self._streaming(client, dice, events=dice.randrange(1, 30)) as response:
            await response.aread()
        return str(response.status_code)

    async def _leave(self, client: httpx.AsyncClient, dice: random.Random) -> str:
        async with self._streaming(client, dice, events=200) as response:
            if response.status_code != httpx.codes.OK:
                return str(response.status_code)
            lines = response.aiter_lines()
            for _ in range(dice.randrange(1, 6)):
                await anext(lines)
        return "left"

    async def _fail(self, client: httpx.AsyncClient, dice: random.Random) -> str:
        headers = dice.choice(
            ({"x-demo-status": "500"}, {"x-demo-fault": "close-before-headers"}, {"x-demo-fault": "reset-mid-stream"})
        )
        answer = await client.post("/v1/infer", json={**INFER, "stream": True}, headers=headers)
        return f"upstream {answer.status_code}" if answer.status_code in _PASSED else str(answer.status_code)

    def _streaming(self, client: httpx.AsyncClient, dice: random.Random, *, events: int) -> Any:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 60}
        headers = {"x-demo-events": str(events), "x-demo-interval-ms": str(dice.randrange(5, 20))}
        return client.stream("POST", "/v1/chat/completions", json=body, headers=headers)


async def _shoot(gateway: Gateway) -> None:
    """Kill processes of the sidecar, one after another, each time one has come back."""
    for module in KILLS:
        [pid, *_] = await until(partial(_living, gateway, module))
        os.kill(pid, signal.SIGKILL)
        await until(partial(_replaced, gateway, module, pid))


async def _living(gateway: Gateway, module: str) -> list[int]:
    return gateway.pids(module)


async def _replaced(gateway: Gateway, module: str, gone: int) -> bool:
    return gone not in gateway.pids(module) and bool(gateway.pids(module))


@pytest.fixture
async def storms(gateway: Gateway) -> dict[str, Storm]:
    """One storm for each limit, so that each is reached; they rage together."""
    roomy = (_requests_per_hour(1_000_000), *ROOMY[1:])
    limits = {
        "concurrent_requests": (*roomy[:2], concurrent_requests(SLOTS)),
        "requests_per_hour": (_requests_per_hour(REQUESTS), *roomy[1:]),
        "tokens_per_day": (roomy[0], tokens_per_day(TOKENS), roomy[2]),
        "cost_per_month": (*roomy, _cost_per_month(COST)),
    }
    tenants = {name: await gateway.tenant(*each) for name, each in limits.items()}
    return {
        name: Storm(gateway, tenant, seed=1000 * number) for number, (name, tenant) in enumerate(tenants.items(), 1)
    }


@pytest.mark.timeout(300)
async def test_in_a_storm_no_limit_is_passed_and_every_sum_agrees(gateway: Gateway, storms: dict[str, Storm]) -> None:
    over = threading.Event()
    watching = asyncio.create_task(asyncio.to_thread(storms["concurrent_requests"].watch_slots, over))
    raging = [asyncio.create_task(storm.rage(CLIENTS // len(storms) + 1)) for storm in storms.values()]
    await _shoot(gateway)
    await asyncio.gather(*raging)
    over.set()
    await watching
    await until(lambda: _is_quiet(gateway), seconds=120)

    rows = {name: await gateway.rows(storm.tenant) for name, storm in storms.items()}
    _print_reconciliation(storms, rows)
    assert 0 < storms["concurrent_requests"].most_slots <= SLOTS
    assert _sum(rows["requests_per_hour"], "charged_requests") <= REQUESTS
    passed = sum(_passed_reservation(row) for row in rows["tokens_per_day"])
    assert _sum(rows["tokens_per_day"], "charged_tokens") <= TOKENS + passed
    for name, storm in storms.items():
        assert storm.told["429"], f"the storm did not reach {name}"
        assert await gateway.slots_held(storm.tenant) == 0
        assert await _counted(gateway, storm.tenant, "tokens_per_day") == _sum(rows[name], "charged_tokens")
        assert await _counted(gateway, storm.tenant, "requests_per_hour") == _sum(rows[name], "charged_requests")
        seen = await asyncio.gather(
            *(gateway.seen(row["request_id"]) for row in rows[name] if row["state"] == "completed")
        )
        assert all(sighting is not None for sighting in seen)
        ends = {row["request_id"]: row for row in rows[name]}
        assert len(ends) == len(rows[name])
    totals = await _router_totals(gateway)
    # The Router may not have seen who left at once; nobody came to it who has no row.
    assert totals["requests"] <= sum(map(len, rows.values()))
    assert totals["live"] == 0


async def _is_quiet(gateway: Gateway) -> bool:
    """Whether nothing runs any more and everything is in the ledger."""
    async with Redis.from_url(gateway.redis.url) as redis:
        open_requests = [await redis.zcard(key) async for key in redis.scan_iter("igw1:*:leases")]
        waiting = [await redis.xlen(key) async for key in redis.scan_iter("igw1:*:events")]
    return sum(open_requests) == sum(waiting) == 0


async def _counted(gateway: Gateway, tenant: Tenant, limit: str) -> int | None:
    """What Redis holds under the limit; None when its window has passed."""
    async with Redis.from_url(gateway.redis.url) as redis:
        keys = [key async for key in redis.scan_iter(f"igw1:*:counter:tenant:{tenant.id}/{limit}")]
        found = [await redis.hget(key, "sum") for key in keys]
    return int(found[0]) if found and found[0] is not None else None


async def _router_totals(gateway: Gateway) -> Any:
    async with httpx.AsyncClient(base_url=gateway.router_url) as client:
        return (await client.get("/demo/totals")).json()


def _sum(rows: list[dict[str, Any]], column: str) -> int:
    return sum(row[column] or 0 for row in rows)


def _passed_reservation(row: dict[str, Any]) -> int:
    return max(0, int(row["charged_tokens"]) - int(row["input_estimate"]) - int(row["output_reserved"]))


def _print_reconciliation(storms: dict[str, Storm], rows: dict[str, list[dict[str, Any]]]) -> None:
    print(f"{'limit':22}{'told 429':>9}{'rows':>6}{'requests':>9}{'tokens':>8}{'cost':>9}{'most slots':>11}  ends")  # noqa: T201
    for name, storm in storms.items():
        of = rows[name]
        ends = dict(Counter(f"{row['state']}/{row['cause']}" for row in of))
        print(  # noqa: T201
            f"{name:22}{storm.told['429']:>9}{len(of):>6}{_sum(of, 'charged_requests'):>9}"
            f"{_sum(of, 'charged_tokens'):>8}{_sum(of, 'cost_micros'):>9}{storm.most_slots:>11}  {ends}"
        )
