"""The ledger on the command line: right or not, by row and by day, and what cannot be said is said so."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner, Result

import tests.wire.first_import  # noqa: F401 - before the writer, which serves the access log
from extproc.lifecycle import Cause, State
from extproc.record import UsageRecord
from extproc.settlement import settlement
from quota.charges import Charges
from quota.redis import shard_of
from sidecar.commands import ledger as command
from sidecar.commands.session import PlainErrors
from store import ledger
from store.database import opened
from tests.quota.own_redis import OwnRedis, running
from tests.sidecar.reconciling import Gateway, charges, gateway, seeded
from tests.support.records import NOON, usage_record

PEPPER = "0123456789abcdef" * 4
ORGANIZATIONS = ("org_a", "org_b", "org_c")
CHARGED = charges(seeded(1))
Run = Callable[..., Result]
Work = Callable[[Gateway], Coroutine[Any, Any, None]]

app = typer.Typer(cls=PlainErrors)
app.add_typer(command.app, name="ledger")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
def run(database: str, redis_server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return lambda *words: CliRunner().invoke(app, ["ledger", *words])


@pytest.fixture
def after(database: str, redis_server: OwnRedis) -> Callable[..., None]:
    """Does something to a gateway whose ledger has two requests of each organization."""

    def do(*works: Work) -> None:
        async def in_loop() -> None:
            async with opened(database) as pool, gateway(redis_server.url, pool) as found:
                await settle(found)
                await found.write_all()
                for work in works:
                    await work(found)

        asyncio.run(in_loop())

    return do


async def settle(found: Gateway) -> None:
    for organization in ORGANIZATIONS * 2:
        one = await found.admission(organization_id=organization, request_id=str(uuid4()))
        ending = usage_record(first_event_ms=None, ended_ms=one.admitted_ms + 5, charges=CHARGED).ending
        assert await found.reservations.settle(settlement(one, ending))


async def nothing(_: Gateway) -> None:
    pass


def tampering(statement: str) -> Work:
    async def tamper(found: Gateway) -> None:
        await found.pool.execute("ALTER TABLE inference_requests DISABLE TRIGGER USER")
        await found.pool.execute(statement)

    return tamper


_COLUMNS = "(SELECT * FROM inference_requests WHERE organization_id = 'org_a' LIMIT 1)"
LOST = tampering("DELETE FROM inference_requests WHERE organization_id = 'org_a'")
CHANGED = tampering("UPDATE inference_requests SET cost_micros = cost_micros + 1 WHERE organization_id = 'org_b'")
DOUBLED = tampering(
    f"CREATE TEMPORARY TABLE twin AS {_COLUMNS}; UPDATE twin SET received_at = received_at + interval '1 ms'; "  # noqa: S608
    "INSERT INTO inference_requests SELECT * FROM twin; DROP TABLE twin"
)


def verified(result: Result, *, right: bool) -> dict[str, Any]:
    assert result.exit_code == (0 if right else 1), result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["right"] is right
    return found


def test_a_ledger_that_is_right(run: Run, after: Callable[..., None]) -> None:
    after(nothing)
    found = verified(run("verify", "--json"), right=True)
    shards = len({shard_of(each) for each in ORGANIZATIONS})
    assert found["compared"] in range(shards, 2 * shards + 1)  # midnight may have passed
    assert (found["twice"], found["odd"], found["differences"], found["not_compared"]) == ([], [], [], [])
    assert "Nothing is wrong" in run("verify").stdout


@pytest.fixture
def empty(redis_server: OwnRedis, database: str) -> None:
    async def flush() -> None:
        async with opened(database) as pool, gateway(redis_server.url, pool):
            pass

    asyncio.run(flush())


@pytest.mark.usefixtures("empty")
def test_an_empty_one_is_right(run: Run) -> None:
    assert verified(run("verify", "--json"), right=True)["compared"] == 0


def test_a_lost_row_shows_as_a_difference_of_its_shard_and_day(run: Run, after: Callable[..., None]) -> None:
    after(LOST)
    [difference] = verified(run("verify", "--json"), right=False)["differences"]
    assert difference["shard"] == shard_of("org_a")
    assert {name: difference["settled"][name] - difference["ledger"][name] for name in difference["ledger"]} == {
        "rows": 2,
        "requests": 2 * CHARGED.requests,
        "tokens": 2 * CHARGED.tokens,
        "cost": 2 * CHARGED.cost,
    }
    result = run("verify")
    assert result.exit_code == 1
    assert difference["day"] in result.stdout
    assert "rows" in result.stdout


def test_a_changed_row_shows_by_what_was_changed(run: Run, after: Callable[..., None]) -> None:
    after(CHANGED)
    [difference] = verified(run("verify", "--json"), right=False)["differences"]
    assert difference["shard"] == shard_of("org_b")
    assert difference["ledger"] == {**difference["settled"], "cost": 2 * CHARGED.cost + 2}


def test_a_request_with_two_rows_is_named(run: Run, after: Callable[..., None]) -> None:
    after(DOUBLED)
    found = verified(run("verify", "--json"), right=False)
    [twice] = found["twice"]
    [difference] = found["differences"]
    assert (difference["settled"]["rows"], difference["ledger"]["rows"]) == (2, 3)
    told = run("verify")
    assert f"The request {twice} has several rows." in told.stdout, told.stderr


def test_a_day_is_not_called_right_while_events_wait(run: Run, after: Callable[..., None]) -> None:
    after(settle, LOST)
    found = verified(run("verify", "--json"), right=True)
    assert {each["why"] for each in found["not_compared"]} == {"waiting"}
    assert found["compared"] == 0
    assert "wait for the ledger" in run("verify").stdout


async def flush(found: Gateway) -> None:
    await found.redis.flushall()
    await found.rebuild()


async def settle_and_write(found: Gateway) -> None:
    await settle(found)
    await found.write_all()


@pytest.mark.parametrize(("then", "why"), [(nothing, "forgotten"), (settle_and_write, "partial")])
def test_what_redis_has_lost_is_not_compared(run: Run, after: Callable[..., None], then: Work, why: str) -> None:
    after(flush, then)
    found = verified(run("verify", "--json"), right=True)
    assert {each["why"] for each in found["not_compared"]} == {why}
    assert "Redis" in run("verify").stdout


def test_rows_of_before_there_were_settlements_are_in_no_sum(run: Run, after: Callable[..., None]) -> None:
    async def old(found: Gateway) -> None:
        await ledger.write(found.pool, [usage_record(settlement=None, received_ms=NOON)])

    after(old)
    verified(run("verify", "--json", "--since", "2020-01-01"), right=True)


ROW = {"charges": Charges(requests=1, input_tokens=10, output_tokens=30, tokens=40, cost=9)}
SOUND = [
    usage_record(**ROW),
    usage_record(received_ms=NOON, admitted_ms=NOON - 1000, ended_ms=NOON - 2000, first_event_ms=None),
    usage_record(dispatched_ms=NOON + 3, first_event_ms=NOON + 3, cached_tokens=10, reasoning_tokens=30),
    usage_record(charges=Charges(requests=1, input_tokens=10, output_tokens=31, tokens=40)),
    usage_record(charges=Charges(requests=1), state=State.FAILED, cause=Cause.UPSTREAM_ERROR),
    usage_record(state=State.CANCELLED, cause=Cause.OUTPUT_LIMIT),
]
ODD = [
    ("cause", usage_record(state=State.COMPLETED, cause=Cause.REVOKED)),
    ("cause", usage_record(state=State.CANCELLED, cause=Cause.DEADLINE)),
    ("times", usage_record(admitted_ms=NOON - 1001, ended_ms=NOON, first_event_ms=None)),
    ("times", usage_record(ended_ms=NOON - 1001, first_event_ms=None)),
    ("times", usage_record(dispatched_ms=NOON + 9000)),
    ("times", usage_record(first_event_ms=NOON - 3000)),
    ("tokens", usage_record(cached_tokens=11)),
    ("tokens", usage_record(reasoning_tokens=31)),
    ("charges", usage_record(charges=Charges(requests=2))),
    ("charges", usage_record(charges=Charges(input_tokens=4, tokens=4))),
    ("charges", usage_record(charges=Charges(requests=1, input_tokens=4, output_tokens=4, tokens=9))),
    ("charges", usage_record(charges=Charges(requests=1, input_tokens=4, output_tokens=4, tokens=6))),
]


def write(database: str, records: list[UsageRecord]) -> None:
    async def work() -> None:
        async with opened(database) as pool:
            await ledger.write(pool, records)

    asyncio.run(work())


@pytest.mark.usefixtures("empty")
def test_rows_that_cannot_be_are_named_and_sound_ones_are_not(run: Run, database: str) -> None:
    write(database, SOUND)
    assert verified(run("verify", "--json", "--since", "2020-01-01"), right=True)["odd"] == []
    write(database, [record for _, record in ODD])
    found = verified(run("verify", "--json", "--since", "2020-01-01"), right=False)["odd"]
    expected = {record.admission.request_id: flaw for flaw, record in ODD}
    assert {each["request_id"]: each["flaw"] for each in found} == expected
    assert verified(run("verify", "--json", "--since", "2026-01-02"), right=True)["odd"] == []
    shown = run("verify", "--since", "2020-01-01").stdout
    assert shown.count("cannot be") == len(ODD)


def test_without_redis_nothing_is_called_right(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    result = run("verify")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "inference-gateway: " in result.stderr
    assert run("verify", "--since", "soon").exit_code == 1


def test_its_partitions_are_listed(run: Run, database: str) -> None:
    write(database, [usage_record()])
    found = json.loads(run("partitions", "--json").stdout)
    assert found[-1]["name"] == "inference_requests_default"
    assert len(found) == 4
    assert all(each["bytes"] > 0 for each in found)
    assert found[0]["name"] in run("partitions").stdout
