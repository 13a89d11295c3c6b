"""The audit trail on the command line: whole or not, as JSON lines, and as a table."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from sidecar.commands import audit
from sidecar.commands.session import PlainErrors
from store.audit import GENESIS, Actor, Change, append_all
from store.database import opened

PEPPER = "0123456789abcdef" * 4
ACTOR = Actor(name="cli:root", source="host-1", request_id="req-1")
Run = Callable[..., Result]

app = typer.Typer(cls=PlainErrors)
app.add_typer(audit.app, name="audit")


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return lambda *words: CliRunner().invoke(app, ["audit", *words])


@pytest.fixture
def three_rows(database: str) -> None:
    now = datetime.now(UTC)

    async def write() -> None:
        changes = [Change(action="tenant.suspend", subject=f"tenant:ten_{n}", after={"n": n}) for n in range(3)]
        entries = [(ACTOR, now - timedelta(days=2 - n), change) for n, change in enumerate(changes)]
        async with opened(database) as pool:
            await append_all(pool, entries, pepper=PEPPER.encode())

    asyncio.run(write())


def forge(database: str, statement: str) -> None:
    async def work() -> None:
        async with opened(database, size=1) as pool:
            await pool.execute("ALTER TABLE audit DISABLE TRIGGER USER")
            await pool.execute(statement)

    asyncio.run(work())


def answered(result: Result) -> str:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def refused(result: Result, *words: str) -> None:
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    for word in words:
        assert word in result.stderr


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("three_rows")
def test_a_whole_trail_says_how_long_it_is_and_where_it_ends(run: Run) -> None:
    text = answered(run("verify"))
    found = json.loads(answered(run("verify", "--json")))
    assert found == {"intact": True, "count": 3, "head": lines(answered(run("export")))[-1]["hash"]}
    assert "intact" in text
    assert found["head"] in text
    assert answered(run("verify", "--head", found["head"])) == text


@pytest.mark.usefixtures("three_rows")
def test_a_broken_trail_names_its_first_broken_row(run: Run, database: str) -> None:
    forge(database, "UPDATE audit SET actor = 'cli:eve' WHERE number = 2")
    refused(run("verify"), "row 2", "not what was written")
    result = run("verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"intact": False, "number": 2, "fault": "changed"}


@pytest.mark.usefixtures("three_rows")
def test_rows_that_are_missing_are_named(run: Run, database: str) -> None:
    head = json.loads(answered(run("verify", "--json")))["head"]
    forge(database, "DELETE FROM audit WHERE number = 3")
    answered(run("verify"))
    refused(run("verify", "--head", head), "row 3", "is not in it")
    forge(database, "DELETE FROM audit WHERE number = 1")
    refused(run("verify"), "row 1", "missing")


@pytest.mark.parametrize("head", ["", "abc", "zz" * 32, "00" * 31])
def test_a_head_that_is_none_is_refused(run: Run, head: str) -> None:
    refused(run("verify", "--head", head), "--head")


@pytest.mark.usefixtures("three_rows")
def test_the_rows_are_exported_as_json_lines(run: Run) -> None:
    rows = lines(answered(run("export")))
    assert [row["number"] for row in rows] == [1, 2, 3]
    first = rows[0]
    assert first.pop("previous_hash") == GENESIS.hex()
    assert datetime.fromisoformat(first.pop("at")).tzinfo is not None
    assert len(first.pop("hash")) == 64
    assert first == {
        "number": 1,
        "actor": "cli:root",
        "action": "tenant.suspend",
        "subject": "tenant:ten_0",
        "tenant_id": None,
        "source": "host-1",
        "request_id": "req-1",
        "before": None,
        "after": {"n": 0},
    }
    assert [row["number"] for row in lines(answered(run("export", "--since", "30h")))] == [2, 3]
    refused(run("export", "--since", "soon"), "--since", "soon")


@pytest.mark.usefixtures("three_rows")
def test_the_newest_rows_are_listed_first(run: Run) -> None:
    table = answered(run("list"))
    assert table.index("tenant:ten_2") < table.index("tenant:ten_1") < table.index("tenant:ten_0")
    assert "cli:root" in table
    assert [row["number"] for row in json.loads(answered(run("list", "--limit", "2", "--json")))] == [3, 2]
    assert [row["number"] for row in json.loads(answered(run("list", "--subject", "tenant:ten_1", "--json")))] == [2]


def test_an_empty_trail_is_whole(run: Run) -> None:
    assert json.loads(answered(run("verify", "--json"))) == {"intact": True, "count": 0, "head": GENESIS.hex()}
    assert answered(run("export")) == ""
    assert "nothing" in answered(run("list"))
