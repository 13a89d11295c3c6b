"""Requests on the command line: of all tenants, running and ended, listed, shown and taken out."""

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from extproc import admission as admissions
from extproc import lifecycle_events
from extproc.lifecycle import Cause, State
from extproc.record import UsageRecord
from quota.charges import Charges
from quota.redis import RedisReservations, key_of, shard_of
from sidecar.cli import app
from sidecar.redis_client import server_pipe
from store import ledger
from tests.quota.own_redis import OwnRedis, running
from tests.support.records import usage_record
from tests.support.shell import PEPPER, Shell, row
from tests.support.values import claim, held


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """Without Redis."""
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return Shell(app, database)


@pytest.fixture
def live_shell(shell: Shell, redis_server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return shell


def tenant(shell: Shell, name: str) -> dict[str, Any]:
    found: dict[str, Any] = shell.json(f"tenant create {name} --organization acme")
    return found


def ended(ago_seconds: int, **changes: Any) -> UsageRecord:
    """A request that was received so long ago."""
    received_ms = int(datetime.now(UTC).timestamp() * 1000) - 1000 * ago_seconds
    return usage_record(received_ms=received_ms, admitted_ms=received_ms + 2, **changes)


def write(shell: Shell, *records: UsageRecord) -> None:
    shell.within(lambda pool: ledger.write(pool, records))


def run(server: OwnRedis, record: UsageRecord) -> str:
    """Have a request run in Redis."""
    admission = record.admission

    async def work() -> None:
        pipe = server_pipe(server.url, deadline=10)
        await pipe.call("SET", key_of(shard_of(admission.organization_id), "epoch"), 1)  # its counters are whole
        asked = claim(
            admission.request_id,
            held(),
            organization_id=admission.organization_id,
            tenant_id=admission.tenant_id,
            admission=admissions.encode(admission),
            stage=State.ADMITTED,
        )
        await RedisReservations(pipe).reserve(asked)
        await pipe.aclose()

    asyncio.run(work())
    return admission.request_id


def ids(found: list[dict[str, Any]]) -> list[str]:
    return [one["id"] for one in found]


def test_ended_requests_of_all_tenants_are_listed_newest_first(shell: Shell) -> None:
    mine = tenant(shell, "search")["id"]
    records = [
        ended(30, tenant_id=mine, charges=Charges(cost=1_500)),
        ended(20),
        ended(10, tenant_id=mine, state=State.CANCELLED, cause=Cause.ADMIN_CANCEL, model="[red]"),
    ]
    write(shell, *records)
    newest_first = [record.admission.request_id for record in reversed(records)]
    result = shell.run("requests list")
    for text in ("acme/search", "ten_a", "admin_cancel", "[red]", "$0.001500", *newest_first):
        assert text in result.stdout
    assert "REDIS_URL is not set" in result.stderr
    places = [result.stdout.index(request_id) for request_id in newest_first]
    assert places == sorted(places)
    assert ids(shell.json("requests list --limit 2")) == newest_first[:2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--tenant search", "ac"),
        ("--model large", "b"),
        ("--principal wl_w", "c"),
        ("--state failed --state completed", "ab"),
        ("--since 30m", "c"),
        ("--until 30m --state completed", "a"),
        ("--since 2h --until 3500s", "a"),
        ("--tenant search --model large", ""),
    ],
)
def test_a_list_is_filtered(shell: Shell, options: str, expected: str) -> None:
    mine = tenant(shell, "search")["id"]
    records = [
        ended(4000, tenant_id=mine),
        ended(3000, model="large", state=State.FAILED, cause=Cause.UPSTREAM_ERROR),
        ended(0, tenant_id=mine, principal_id="wl_w", state=State.TIMED_OUT, cause=Cause.DEADLINE),
    ]
    write(shell, *records)
    names = {record.admission.request_id: name for record, name in zip(records, "abc", strict=True)}
    assert "".join(sorted(names[each] for each in ids(shell.json(f"requests list {options}")))) == expected


def test_running_requests_are_listed_and_shown_too(live_shell: Shell, redis_server: OwnRedis) -> None:
    made = tenant(live_shell, "search")
    owner = {"tenant_id": made["id"], "organization_id": made["organization_id"]}
    before, after = ended(20, **owner), ended(5, **owner)
    write(live_shell, before)
    request_id = run(redis_server, after)
    result = live_shell.run("requests list --tenant search")
    assert result.stderr == ""
    assert "admitted" in result.stdout
    assert ids(live_shell.json("requests list")) == [request_id, before.admission.request_id]
    assert ids(live_shell.json("requests list --state admitted")) == [request_id]
    assert ids(live_shell.json("requests list --state completed")) == [before.admission.request_id]
    shown = live_shell.json(f"requests show {request_id}")
    assert (shown["state"], shown["tokens"]) == ("admitted", None)
    assert row(live_shell.says(f"requests show {request_id}"), "state") == "admitted"
    write(live_shell, after)
    assert live_shell.json("requests list")[0]["state"] == "completed"


def test_an_ended_request_is_shown(shell: Shell) -> None:
    record = ended(5, charges=Charges(cost=7), actual_cost='{"total_usd": "0.000007"}')
    write(shell, record)
    shown = shell.json(f"requests show {record.admission.request_id}")
    assert (shown["cause"], shown["cost_dollars"]) == ("finished", "0.000007")
    assert shown["actual_cost"] == {"total_usd": "0.000007"}
    text = shell.says(f"requests show {record.admission.request_id}")
    assert row(text, "tenant_id") == "ten_a"
    assert row(text, "output tokens") == "30"


@pytest.mark.parametrize("request_id", ["x", "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11"])
def test_an_unknown_request_is_said_so(live_shell: Shell, request_id: str) -> None:
    live_shell.refuses(f"requests show {request_id}", "REQUEST_ID", request_id)


def test_requests_are_exported_in_every_format(shell: Shell) -> None:
    records = [ended(7200), ended(3600, tenant_id="ten_b"), ended(0, model="large")]
    write(shell, *records)
    in_order = [record.admission.request_id for record in records]
    lines = [json.loads(line) for line in shell.says("requests export").splitlines()]
    assert ids(lines) == in_order
    assert lines == shell.json("requests list")[::-1]
    names, *rows = csv.reader(io.StringIO(shell.says("requests export --format csv --model demo")))
    assert [each[names.index("id")] for each in rows] == in_order[:2]
    events = json.loads(shell.says("requests export --format cloudevents --until 30m"))
    wanted = [lifecycle_events.ended(record.admission, record.ending) for record in records[:2]]
    assert events == [json.loads(lifecycle_events.encode(event)) for event in wanted]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list --state received", ("--state", "received")),
        ("list --tenant nobody", ("tenant", "nobody")),
        ("list --since soon", ("--since", "soon")),
        ("export --until soon", ("--until", "soon")),
    ],
)
def test_what_cannot_be_meant_is_refused(shell: Shell, command: str, words: tuple[str, ...]) -> None:
    shell.refuses(f"requests {command}", *words)


def test_nothing_is_said_to_be_nothing(shell: Shell) -> None:
    assert "no such request" in shell.run("requests list").stdout
    assert shell.says("requests export") == ""
