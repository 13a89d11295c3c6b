"""What becomes of requests while their limits cannot be asked: who passes, who waits, and is it charged afterwards?

Redis is killed, frozen, held up, filled, made read-only, taken from its master and flushed, under a real gateway. The
tests share it, and each puts it together again.
"""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from quota.breaker import PROBE_SECONDS
from quota.limit import Limit, OnOutage, Unit, Window, concurrent_requests, limit_name
from quota.scripts import load
from tests.e2e.outages import redis_frozen, redis_killed, stopped
from tests.support.gateway import PEPPER, Gateway, Tenant, running, until

INFER = {"model": "m", "input": "hello"}
DEADLINE = 0.6
HOUR = 3600
PLENTY = 1_000_000_000
COUNTED = {"requests_per_hour": "charged_requests", "tokens_per_hour": "charged_tokens"}
BEFORE = 3  # requests of each tenant before the outage
AT_ONCE = 40
SHARED = 7  # a ceiling that two workers share: three each

Outage = Callable[[Gateway], AbstractAsyncContextManager[None]]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    env = {
        "GATEWAY_QUOTA_DEADLINE_SECONDS": str(DEADLINE),
        "GATEWAY_LOG_FORMAT": "json",
        "GATEWAY_DRAIN_SECONDS": "0.5",
    }
    with running(env=env) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
async def _whole(gateway: Gateway) -> None:
    """Whatever the test before broke, all of it is there again."""
    await _heals(gateway, within=30)


async def _heals(gateway: Gateway, *, within: float = 10) -> None:
    """Every worker asks the limits again, and admits, within so many seconds."""
    async with gateway.client(await gateway.tenant()) as client:

        async def whole() -> bool:
            answers = await asyncio.gather(*(_post(client) for _ in range(20)))
            if {answer.status_code for answer in answers} != {200}:
                return False
            healthy = await gateway.healthy_workers() == gateway.workers
            return healthy and await _gauge(gateway, "gateway_limits_out") == 0

        await until(whole, seconds=within)


def _limits(on_outage: OnOutage, requests: int = PLENTY) -> tuple[Limit, ...]:
    """Limits of one class. Their windows are longer than the tests."""
    hourly = (
        Limit(name=limit_name(unit, Window.SLIDING, HOUR), unit=unit, window=Window.SLIDING, ceiling=most, seconds=HOUR)
        for unit, most in ((Unit.REQUESTS, requests), (Unit.TOKENS, PLENTY))
    )
    limits = (*hourly, concurrent_requests(10_000))
    return tuple(msgspec.structs.replace(limit, on_outage=on_outage) for limit in limits)


@contextlib.asynccontextmanager
async def _asking(gateway: Gateway) -> AsyncIterator[Redis]:
    async with Redis.from_url(gateway.redis.url) as redis:
        yield redis


@contextlib.asynccontextmanager
async def slow(gateway: Gateway) -> AsyncIterator[None]:
    """It answers a PING at once, and a script later than anybody waits."""
    async with _asking(gateway) as redis:
        await redis.client_pause(600_000, all=False)
        try:
            yield
        finally:
            await redis.client_unpause()


@contextlib.asynccontextmanager
async def full(gateway: Gateway) -> AsyncIterator[None]:
    async with _asking(gateway) as redis:
        await redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await redis.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def read_only(gateway: Gateway) -> AsyncIterator[None]:
    """A replica answers reads, from what it has of a master that is gone."""
    async with _asking(gateway) as redis:
        await redis.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            await redis.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def failing_over(gateway: Gateway) -> AsyncIterator[None]:
    """A replica that has no master answers nothing, until it is made one."""
    async with _asking(gateway) as redis:
        await redis.config_set("replica-serve-stale-data", "no")
        try:
            async with read_only(gateway):
                yield
        finally:
            await redis.config_set("replica-serve-stale-data", "yes")


@contextlib.asynccontextmanager
async def flushed(gateway: Gateway) -> AsyncIterator[None]:
    """It would be over in a moment: who rebuilds the counters is held."""
    [ledger_writer] = gateway.pids("sidecar.ledger_writer")
    with stopped(ledger_writer):
        async with _asking(gateway) as redis:
            await redis.flushall()
        yield


OUTAGES = (redis_killed, redis_frozen, slow, full, read_only, failing_over, flushed)


async def _post(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/infer", json=INFER)


async def _answers(gateway: Gateway, tenant: Tenant, count: int) -> list[httpx.Response]:
    """What a tenant is answered, who asks so many times at once."""
    async with gateway.client(tenant) as client:
        return await asyncio.gather(*(_post(client) for _ in range(count)))


async def _answers_of_all_workers(gateway: Gateway, tenant: Tenant) -> list[httpx.Response]:
    """What a tenant is answered who asks until each worker has been asked often.

    Envoy gives its calls to the workers in turn, and a request makes two, Check and Process: however many come at once,
    one worker may get nearly all of the latter. A lone Check in between has the next ask the other.
    """
    answers = []
    async with gateway.client(tenant) as client:
        for _ in range(6):
            answers += await asyncio.gather(*(_post(client) for _ in range(5)))
            for _ in range(6):
                answers.append(await _post(client))
                await client.get("/v1/models")
    return answers


async def _tenants(gateway: Gateway) -> dict[OnOutage, Tenant]:
    """A tenant of each class, who has used something of his limits."""
    found = {
        each: await gateway.tenant(*_limits(each, SHARED if each is OnOutage.LOCAL else PLENTY)) for each in OnOutage
    }
    for tenant in found.values():
        assert {answer.status_code for answer in await _answers(gateway, tenant, BEFORE)} == {200}
    return found


async def _quiet(gateway: Gateway) -> bool:
    """Whether nothing runs any more, and all that was settled is in the ledger and charged."""
    async with _asking(gateway) as redis:
        leases = [await redis.zcard(key) async for key in redis.scan_iter("igw1:*:leases")]
        events = [await redis.xlen(key) async for key in redis.scan_iter("igw1:*:events")]
        epochs = [key async for key in redis.scan_iter("igw1:*:epoch")]
    return sum(leases) == sum(events) == 0 and bool(epochs)


async def _counted(gateway: Gateway, tenant: Tenant) -> dict[str, int]:
    """What Redis holds under each limit of a tenant."""
    async with _asking(gateway) as redis:
        found = {}
        for limit in COUNTED:
            keys = [key async for key in redis.scan_iter(f"igw1:*:counter:tenant:{tenant.id}/{limit}")]
            found[limit] = sum([int(await redis.hget(key, "sum") or 0) for key in keys])
    return found


async def _written(gateway: Gateway, tenant: Tenant, count: int) -> list[dict[str, Any]]:
    """A tenant's rows, when so many are there and everything is charged, or will never be."""

    async def written() -> bool:
        return len(await gateway.rows(tenant)) >= count and await _quiet(gateway)

    with contextlib.suppress(TimeoutError):  # what is there says better what is missing
        await until(written)
    return await gateway.rows(tenant)


def _sums(rows: list[dict[str, Any]]) -> dict[str, int]:
    """What the limits of a tenant should hold, by the ledger."""
    return {limit: sum(row[column] for row in rows) for limit, column in COUNTED.items()}


async def _assert_charged(gateway: Gateway, tenant: Tenant, degraded: dict[str, int]) -> None:
    """So many rows of each mark, once each, and the limits hold what they say."""
    rows = await _written(gateway, tenant, sum(degraded.values()))
    assert Counter(row["degraded"] for row in rows) == degraded
    assert {row["charged_requests"] for row in rows} == {1}
    assert await _counted(gateway, tenant) == _sums(rows)


async def _gauge(gateway: Gateway, name: str, **labels: str) -> float:
    """A figure at /metrics; 0 when nothing was counted."""
    async with httpx.AsyncClient(base_url=gateway.ops_url) as client:
        text = (await client.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def _assert_unavailable(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert (error["code"], answer.headers["retry-after"]) == ("limits_unavailable", "1")


def _assert_shares(answers: list[httpx.Response], workers: int) -> int:
    """Each worker let its share pass, and refused the rest like the limit itself would; returns how many passed."""
    share = SHARED // workers
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) == share * workers
    for answer in refused:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "rate_limit_exceeded")
        told = {"limit": "requests_per_hour", "ceiling": share, "used": share, "degraded": "local"}
        assert told.items() <= error["details"].items()
        assert int(answer.headers["retry-after"]) >= 1
    return share * workers


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.__name__)
async def test_each_class_says_what_an_outage_means_and_what_passed_is_charged_once(
    gateway: Gateway, outage: Outage
) -> None:
    tenants = await _tenants(gateway)
    await until(lambda: _quiet(gateway))
    async with outage(gateway):
        closed = await _answers(gateway, tenants[OnOutage.CLOSED], 6)
        opened = await _answers(gateway, tenants[OnOutage.OPEN], 6)
        local = await _answers_of_all_workers(gateway, tenants[OnOutage.LOCAL])
    for answer in closed:
        _assert_unavailable(answer)
        assert await gateway.seen(answer.headers["x-request-id"]) is None
    assert {answer.status_code for answer in opened} == {200}
    passed = _assert_shares(local, gateway.workers)
    await _heals(gateway)
    assert {answer.status_code for answer in await _answers(gateway, tenants[OnOutage.CLOSED], 4)} == {200}
    await _assert_charged(gateway, tenants[OnOutage.CLOSED], {"": BEFORE + 4})
    await _assert_charged(gateway, tenants[OnOutage.OPEN], {"": BEFORE, "open": 6})
    await _assert_charged(gateway, tenants[OnOutage.LOCAL], {"": BEFORE, "local": passed})
    # The limit is exact again: what the outage let pass is more than it had left.
    [refused] = await _answers(gateway, tenants[OnOutage.LOCAL], 1)
    assert refused.status_code == 429
    assert refused.json()["error"]["details"]["used"] == BEFORE + passed


async def test_a_flush_heals_by_itself(gateway: Gateway) -> None:
    tenant = await gateway.tenant(*_limits(OnOutage.CLOSED, 10))
    assert [answer.status_code for answer in await _answers(gateway, tenant, 8)] == [200] * 8
    await until(lambda: _quiet(gateway))
    async with _asking(gateway) as redis:
        await redis.flushall()
    await _heals(gateway)
    answers = await _answers(gateway, tenant, 5)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    await _assert_charged(gateway, tenant, {"": 10})


@contextlib.asynccontextmanager
async def _listening(gateway: Gateway, script: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """How often Redis was asked to run a script, what it did late counted too."""
    sha = load(script).sha.encode()
    async with _asking(gateway) as redis:
        await redis.config_set("slowlog-max-len", 100_000)
        await redis.config_set("slowlog-log-slower-than", 0)

        async def asked() -> int:
            return sum(sha in entry["command"] for entry in await redis.slowlog_get(100_000))

        try:
            yield asked
        finally:
            await redis.config_set("slowlog-log-slower-than", -1)
            await redis.slowlog_reset()


async def test_a_frozen_redis_costs_about_one_deadline_and_not_one_for_each_request(gateway: Gateway) -> None:
    tenant, clients, turns = await gateway.tenant(*_limits(OnOutage.OPEN)), 8, 25
    async with _listening(gateway, "reserve") as asked, gateway.client(tenant) as client:

        async def in_turn() -> list[httpx.Response]:
            return [await _post(client) for _ in range(turns)]

        async with redis_frozen(gateway):
            began = time.monotonic()
            answers = await asyncio.gather(*(_post(client) for _ in range(AT_ONCE)))
            waited = time.monotonic() - began
            following = await asyncio.gather(*(in_turn() for _ in range(clients)))
            took = time.monotonic() - began - waited
        answers += [answer for each in following for answer in each]
        assert {answer.status_code for answer in answers} == {200}
        assert waited < AT_ONCE * DEADLINE / 4
        assert took < turns * DEADLINE
        await until(lambda: _quiet(gateway))
        # Each worker tries once in a while, with one request, and that one waits.
        assert 1 <= await asked() <= AT_ONCE + gateway.workers * (1 + took / PROBE_SECONDS)
    await _assert_charged(gateway, tenant, {"open": len(answers)})


async def _reconcile(gateway: Gateway) -> tuple[int | None, str]:
    env = {"DATABASE_URL": gateway.dsn, "REDIS_URL": gateway.redis.url, "GATEWAY_KEY_PEPPER": PEPPER}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "reconcile"),
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_a_flush_under_load_passes_no_limit_and_leaves_no_drift(gateway: Gateway) -> None:
    ceiling, clients, flush_at = 200, 8, 80
    tenant = await gateway.tenant(*_limits(OnOutage.CLOSED, ceiling))
    told: Counter[int] = Counter()
    reached = asyncio.Event()

    async def load() -> None:
        async with gateway.client(tenant) as client:
            while told[429] < clients:
                told[(await _post(client)).status_code] += 1
                if told[200] >= flush_at:
                    reached.set()

    loads = [asyncio.create_task(load()) for _ in range(clients)]
    await reached.wait()
    async with _asking(gateway) as redis:
        await redis.flushall()
    await asyncio.gather(*loads)
    assert set(told) <= {200, 429, 503}

    async def no_drift() -> bool:
        code, output = await _reconcile(gateway)
        assert (code == 0) == output.startswith("No drift"), output
        return code == 0

    await until(no_drift)
    await _assert_charged(gateway, tenant, {"": told[200]})
    assert told[200] == ceiling


async def test_the_sidecar_starts_without_redis_and_heals_when_one_comes(gateway: Gateway) -> None:
    tenants = await _tenants(gateway)
    await until(lambda: _quiet(gateway))
    gateway.stop("serve")
    gateway.kill("redis")
    shutil.rmtree(gateway.redis.data)  # what comes is a new one
    gateway.start_serve(ready="/livez")
    try:

        async def serves() -> bool:
            return await gateway.healthy_workers() == gateway.workers

        await until(serves)
        for answer in await _answers(gateway, tenants[OnOutage.CLOSED], 4):
            _assert_unavailable(answer)
        assert {answer.status_code for answer in await _answers(gateway, tenants[OnOutage.OPEN], 4)} == {200}
    finally:
        gateway.start_redis()
    await _heals(gateway)
    assert {answer.status_code for answer in await _answers(gateway, tenants[OnOutage.CLOSED], 4)} == {200}
    await _assert_charged(gateway, tenants[OnOutage.CLOSED], {"": BEFORE + 4})
    await _assert_charged(gateway, tenants[OnOutage.OPEN], {"": BEFORE, "open": 4})


async def test_an_outage_is_told_once_by_each_worker_and_each_decision_is_counted(gateway: Gateway) -> None:
    tenants = await _tenants(gateway)
    first_line = len(gateway.lines)

    async def decided() -> Counter[tuple[OnOutage, str]]:
        kinds = [(each, outcome) for each in OnOutage for outcome in ("admitted", "refused")]
        name = "gateway_outage_decisions_total"
        return Counter({(each, of): int(await _gauge(gateway, name, on_outage=each, outcome=of)) for each, of in kinds})

    def told() -> Counter[str]:
        lines = [json.loads(line.partition("| ")[2]) for line in gateway.lines[first_line:] if '"limits_' in line]
        return Counter(f"{line['process']} {line['action']}" for line in lines)

    before = await decided()
    async with read_only(gateway):
        for _ in range(3):
            await asyncio.gather(*(_answers(gateway, tenants[each], 20) for each in (OnOutage.CLOSED, OnOutage.OPEN)))
        local = len(await _answers_of_all_workers(gateway, tenants[OnOutage.LOCAL]))
        expected = {
            (OnOutage.CLOSED, "refused"): 60,
            (OnOutage.OPEN, "admitted"): 60,
            (OnOutage.LOCAL, "admitted"): 6,
            (OnOutage.LOCAL, "refused"): local - 6,
        }

        async def counted() -> bool:
            return await decided() - before == expected

        await until(counted)
        assert await _gauge(gateway, "gateway_limits_out") == gateway.workers
        assert told() == {"worker-0 limits_out": 1, "worker-1 limits_out": 1}

    async def back() -> bool:
        await _answers(gateway, tenants[OnOutage.OPEN], 20)
        return await _gauge(gateway, "gateway_limits_out") == 0

    await until(back)
    once = [f"worker-{index} limits_{change}" for index in range(gateway.workers) for change in ("out", "back")]

    async def said() -> bool:
        return told() == Counter(once)

    await until(said, seconds=5)
