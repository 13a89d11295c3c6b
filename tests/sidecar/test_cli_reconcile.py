"""Drift on the command line: shown, repaired on demand, and told by the exit status."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from quota.redis import SHARDS, key_of
from sidecar.commands import reconcile as command
from sidecar.commands.session import PlainErrors
from sidecar.comparison import Comparisons
from store.database import opened
from tests.quota.own_redis import OwnRedis, running
from tests.sidecar.reconciling import SHARD, Gateway, charges, gateway, seeded

PEPPER = "0123456789abcdef" * 4
NAME = "tenant:ten_a/tokens_per_hour"
Run = Callable[..., Result]
Work = Callable[[Gateway], Coroutine[Any, Any, None]]

app = typer.Typer(cls=PlainErrors)
app.command("reconcile")(command.reconcile)
app.command("other")(lambda: None)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
def run(database: str, redis_server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return lambda *words: CliRunner().invoke(app, ["reconcile", *words])


@pytest.fixture
def after(database: str, redis_server: OwnRedis) -> Callable[[Work], None]:
    """Does something to a gateway that has settled three requests."""

    def do(work: Work) -> None:
        async def in_loop() -> None:
            async with opened(database) as pool, gateway(redis_server.url, pool) as found:
                await found.rebuild()
                for _ in range(3):
                    await found.settle(await found.reserve(), charges(seeded(1)))
                await found.write_all()
                await work(found)

        asyncio.run(in_loop())

    return do


async def nothing(_: Gateway) -> None:
    pass


async def drift(found: Gateway) -> None:
    await found.redis.hincrby(key_of(SHARD, "counter", NAME), "sum", 5)


async def flush(found: Gateway) -> None:
    await found.redis.flushall()


async def backlog(found: Gateway) -> None:
    await found.settle(await found.reserve(), charges(seeded(2)))


def test_no_drift_is_said_and_ends_well(run: Run, after: Callable[[Work], None]) -> None:
    after(nothing)
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    assert "No drift: 9 counters hold what the ledger says." in result.stdout
    found = json.loads(run("--json").stdout)
    assert found == {"compared": 9, "lost_shards": [], "repaired": False, "drift": []}


def test_drift_is_shown_and_left_until_it_is_to_be_repaired(run: Run, after: Callable[[Work], None]) -> None:
    after(drift)
    for words in ((), ("--dry-run",)):
        result = run(*words)
        assert result.exit_code == 1
        [line] = [line for line in result.stdout.splitlines() if NAME in line]
        used = 3 * charges(seeded(1)).tokens
        assert line.split() == [NAME, "tokens", f"{used + 5:,}", f"{used:,}", "5"]
    [shown] = json.loads(run("--json").stdout)["drift"]
    assert shown == {
        "organization": "org_a",
        "counter": NAME,
        "unit": "tokens",
        "redis": used + 5,
        "ledger": used,
        "drift": 5,
    }
    result = run("--repair")
    assert result.exit_code == 0
    assert "Repaired: 1 of 9 counters" in result.stdout
    assert run().exit_code == 0


def test_a_tenant_is_looked_at_alone(run: Run, after: Callable[[Work], None]) -> None:
    after(drift)
    assert run("--tenant", "b").exit_code == 0
    assert run("--tenant", "ten_a").exit_code == 1
    assert "there is no tenant" in run("--tenant", "nobody").stderr


def test_lost_counters_are_told_and_made_anew(run: Run, after: Callable[[Work], None]) -> None:
    after(flush)
    result = run()
    assert result.exit_code == 1
    assert f"The counters of {SHARDS} shards are lost" in result.stdout
    assert json.loads(run("--json").stdout)["lost_shards"] == list(range(SHARDS))
    result = run("--repair", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["repaired"] is True
    assert run().exit_code == 0


def test_a_ledger_that_nobody_writes_is_a_line_on_stderr(
    run: Run, after: Callable[[Work], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(backlog)
    monkeypatch.setattr(command, "Comparisons", lambda *rest: Comparisons(*rest, ledger_seconds=0.01))
    result = run()
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "serve` running?" in result.stderr


def test_without_redis_it_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere.sock")
    result = run()
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    monkeypatch.delenv("REDIS_URL")
    assert "REDIS_URL is not set" in run().stderr
