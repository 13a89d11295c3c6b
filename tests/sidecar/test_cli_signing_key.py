"""Signing keys on the command line: which there are, and how the next one takes over."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from sidecar.commands import audit, signing_key
from sidecar.commands.session import PlainErrors
from store import signing_keys
from store.database import opened

PEPPER = "0123456789abcdef" * 4
Run = Callable[[str], Result]

app = typer.Typer(cls=PlainErrors)
app.add_typer(signing_key.app, name="signing-key")
app.add_typer(audit.app, name="audit")


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return lambda command: CliRunner().invoke(app, command)


@pytest.fixture
def first_key(database: str) -> None:
    async def make() -> None:
        async with opened(database, size=1) as pool:
            await signing_keys.ensure(pool, PEPPER.encode(), datetime.now(UTC) - timedelta(hours=1))

    asyncio.run(make())


def answered(result: Result) -> str:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def states(run: Run) -> list[Any]:
    return [key["state"] for key in json.loads(answered(run("signing-key list --json")))]


@pytest.mark.usefixtures("first_key")
def test_the_next_key_signs_in_a_while(run: Run) -> None:
    assert "signs from" in answered(run("signing-key rotate"))
    assert states(run) == ["next", "signing"]
    made = json.loads(answered(run("signing-key rotate --json")))
    assert set(made) == {"id", "created_at", "active_from"}
    table = answered(run("signing-key list"))
    assert made["id"] in table
    assert "signing" in table


@pytest.mark.usefixtures("first_key")
def test_a_stolen_key_is_replaced_now(run: Run) -> None:
    assert "signs now" in answered(run("signing-key rotate --now"))
    assert states(run) == ["signing", "retired"]


@pytest.mark.usefixtures("first_key")
def test_a_rotation_is_in_the_audit_trail(run: Run) -> None:
    made = json.loads(answered(run("signing-key rotate --json")))
    created, retired = json.loads(answered(run("audit list --limit 2 --json")))[::-1]
    assert (created["action"], created["subject"]) == ("signing_key.create", f"signing_key:{made['id']}")
    assert retired["action"] == "signing_key.retire"
    assert created["actor"].startswith("cli:")
    assert json.loads(answered(run("audit verify --json")))["count"] == 3


def test_before_the_first_start_there_is_no_key(run: Run) -> None:
    assert "first one is made" in answered(run("signing-key list"))
    result = run("signing-key rotate")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "--now" in result.stderr


@pytest.mark.usefixtures("first_key")
def test_another_pepper_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", "q" * 32)
    result = run("signing-key rotate")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "pepper" in result.stderr
    assert "q" * 32 not in result.output
