"""Organizations, tenants, plans and roles on the command line: what a person reads, and what a program gets."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from authz.api_key import generate
from sidecar.cli import app
from sidecar.commands.limit_option import parse_limit, written
from store import api_keys
from store.api_keys import NewKey
from store.audit import Actor, Trail
from store.database import opened
from store.field_error import FieldError
from tests.support.identity_rows import audited

PEPPER = "0123456789abcdef" * 4
Run = Callable[..., Result]


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    monkeypatch.chdir(tmp_path)
    return lambda command, *words: CliRunner().invoke(app, [*command.split(), *words])


def answered(result: Result) -> str:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def as_json(result: Result) -> Any:
    return json.loads(answered(result))


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("inference-gateway: ")
    for word in words:
        assert word in result.stderr


def trail_of(database: str) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        async with opened(database) as pool:
            return await audited(pool)

    return asyncio.run(read())


def add_key(database: str, tenant_id: str) -> None:
    trail = Trail(Actor(name="tests", source="tests"), pepper=PEPPER.encode())

    async def work() -> None:
        async with opened(database) as pool:
            new = NewKey(key=generate(), tenant_id=tenant_id, name="laptop")
            await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=trail)

    asyncio.run(work())


def test_an_organization_lives_and_goes(run: Run) -> None:
    made = as_json(run("organization create acme --json"))
    assert made["id"] in answered(run("organization list"))
    assert as_json(run("organization list --json")) == [made]
    assert "apex" in answered(run("organization update acme --name apex"))
    assert "suspended" in answered(run("organization suspend apex"))
    assert as_json(run("organization resume apex --json"))["suspended_at"] is None
    answered(run("tenant create search --organization apex"))
    assert "search" in answered(run("organization show", made["id"]))
    refused(run("organization delete apex --yes"), "--with-tenants", "1 tenant")
    assert "Revoked: 0 keys" in answered(run("organization delete apex --with-tenants --yes"))
    assert as_json(run("organization list --json")) == as_json(run("tenant list --json")) == []


def test_a_suspended_organizations_tenants_are_shown_so(run: Run) -> None:
    answered(run("tenant create search --organization acme"))
    answered(run("organization suspend acme"))
    assert "suspended" in answered(run("tenant list"))


def test_a_tenant_is_made_with_all_it_can_have(run: Run, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{\n  "deniedProviders": ["other"]\n}\n')
    options = "--limit requests_per_minute=5 --limit tokens=9/1h --network 10.0.0.0/8 --network 192.0.2.7"
    made = as_json(
        run(
            f"tenant create search --organization acme --plan pro {options} --require-certificate --json"
            " --routing-policy @policy.json"
        )
    )
    assert [limit["name"] for limit in made["limits"]] == ["requests_per_minute", "tokens_per_hour"]
    assert made["networks"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert made["routing_policy"] == {"tenantId": made["id"], "deniedProviders": ["other"]}
    assert made["certificate_required"] is True
    shown = as_json(run("tenant show search --json"))
    assert shown["tenant"] == made
    assert shown["plan"]["name"] == "pro"
    assert {limit["name"]: limit["ceiling"] for limit in shown["limits"]}["requests_per_minute"] == 5
    text = answered(run("tenant show search"))
    for word in ("10.0.0.0/8, 192.0.2.7/32", "required", "deniedProviders", "concurrent_requests", "tokens_per_hour"):
        assert word in text


def test_what_is_not_given_stays_as_it_is(run: Run) -> None:
    policy = ("--routing-policy", '{"defaultStrategy": "cheapest"}')
    options = "--limit requests_per_minute=5 --network 10.0.0.0/8 --require-certificate --json"
    made = as_json(run(f"tenant create search --organization acme {options}", *policy))
    moved = as_json(run("tenant update search --name find --plan pro --json"))
    assert moved == {**made, "name": "find", "plan": "pro"}
    assert as_json(run("tenant update find --json")) == moved
    cleared = "--clear-limits --clear-networks --clear-routing-policy --no-require-certificate"
    bare = as_json(run(f"tenant update find {cleared} --json"))
    assert bare == {**moved, "limits": [], "networks": [], "routing_policy": None, "certificate_required": False}


def test_a_tenant_is_suspended_and_resumed(run: Run) -> None:
    answered(run("tenant create search --organization acme"))
    assert "suspended" in answered(run("tenant suspend search"))
    first = as_json(run("tenant show search --json"))["tenant"]["suspended_at"]
    assert as_json(run("tenant suspend search --json"))["suspended_at"] == first
    assert "active" in answered(run("tenant resume search"))


def test_a_deleted_tenant_says_what_became_of_its_keys_and_history(run: Run, database: str) -> None:
    made = as_json(run("tenant create search --organization acme --json"))
    add_key(database, made["id"])
    refused(run("tenant delete search"), "--yes", "revokes 1 key", "stays in the ledger")
    assert as_json(run("tenant show search --json"))["keys"] == 1
    done = answered(run("tenant delete search --yes"))
    for word in ("search", made["id"], "Revoked: 1 key.", "stays in the ledger", "audit trail"):
        assert word in done
    refused(run("tenant show search"), "search")
    assert "There are no tenants" in answered(run("tenant list"))
    assert made["id"] in answered(run("tenant list --deleted"))
    assert "deleted" in answered(run("tenant show", made["id"]))
    again = as_json(run("tenant create search --organization acme --json"))
    gone = as_json(run("tenant delete --yes --json", again["id"]))
    assert gone["tenant"]["id"] == again["id"]
    assert gone["deletion"] == {"tenants": 1, "keys_revoked": 0, "workloads_deleted": 0, "subjects_deleted": 0}


@pytest.mark.parametrize(("answer", "deleted"), [(b"y\n", True), (b"n\n", False)])
def test_at_a_terminal_a_person_is_asked(run: Run, *, answer: bytes, deleted: bool) -> None:
    answered(run("tenant create search --organization acme"))
    terminal, side = pty.openpty()
    try:
        os.write(terminal, answer)
        ran = subprocess.run(
            [sys.executable, "-m", "sidecar", "tenant", "delete", "search"],
            stdin=side,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            timeout=60,
        )
    finally:
        os.close(terminal)
        os.close(side)
    assert "It revokes 0 keys" in ran.stderr
    assert ran.returncode == (0 if deleted else 1), ran.stderr
    assert as_json(run("tenant list --json")) == [] or not deleted
    assert ("Deleted: the tenant search" in ran.stdout) is deleted


def test_a_plan_lives_and_goes(run: Run) -> None:
    made = as_json(run("plan create gold --limit requests_per_minute=5 --limit tokens_per_day=9 --json"))
    assert as_json(run("plan show gold --json")) == made
    assert "requests_per_minute=5 tokens_per_day=9" in answered(run("plan list"))
    assert as_json(run("plan update gold --metering inline --json")) == {**made, "metering": "inline"}
    changed = run("plan update gold --limit concurrent_requests=3")
    assert "concurrent_requests" in answered(changed)
    assert "does not limit any more: requests_per_minute, tokens_per_day" in changed.stderr
    answered(run("tenant create search --organization acme --plan gold"))
    refused(run("plan delete gold"), "acme/search")
    answered(run("tenant update search --plan free"))
    assert "deleted" in answered(run("plan delete gold"))
    assert "gold" not in answered(run("plan list"))
    assert as_json(run("plan update free --clear-limits --json"))["limits"] == []


def test_a_role_lives_and_goes(run: Run) -> None:
    made = as_json(run("role create auditor --scope usage:read --scope models:read --json"))
    assert made["scopes"] == ["models:read", "usage:read"]
    assert as_json(run("role show auditor --json")) == made
    assert "models:read usage:read" in answered(run("role list"))
    assert as_json(run("role update auditor --scope requests:read --json"))["scopes"] == ["requests:read"]
    assert "deleted" in answered(run("role delete auditor"))
    assert "auditor" not in answered(run("role list"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("organization create acme", ["organization", "already"]),
        ("organization show nobody", ["organization", "nobody"]),
        ("organization update acme --name ten_x", ["organization", "ten_"]),
        ("organization delete nobody --yes", ["organization", "nobody"]),
        ("organization delete acme --with-tenants", ["--yes"]),
        ("tenant create search --organization acme", ["name", "already"]),
        ("tenant create b --organization acme --plan gold", ["plan", "gold", "enterprise, free, pro"]),
        ("tenant create b --organization acme --limit requests=10", ["--limit", "requests_per_minute=10"]),
        ("tenant update search --network 10.0.0.1/8", ["networks", "10.0.0.0/8"]),
        ("tenant update search --limit tokens_per_day=1 --limit tokens_per_day=2", ["--limit", "more than once"]),
        ("tenant update search --limit tokens_per_day=1 --clear-limits", ["--clear-limits"]),
        ("tenant update search --routing-policy {} --clear-routing-policy", ["--clear-routing-policy"]),
        ("tenant update search --routing-policy @missing.json", ["--routing-policy", "missing.json"]),
        ("tenant update search --routing-policy {", ["routing_policy", "JSON"]),
        ('tenant update search --routing-policy {"x":1}', ["routing_policy.x", "allowedProviders"]),
        ("tenant suspend nobody", ["tenant", "nobody"]),
        ("tenant delete nobody --yes", ["tenant", "nobody"]),
        ("plan create gold", ["--limit", "requests_per_minute=10"]),
        ("plan create free --limit requests_per_minute=1", ["plan", "already"]),
        ("plan update gold --metering inline", ["plan", "gold"]),
        ("plan delete free", ["plan", "acme/search"]),
        ("role create viewer --scope admin", ["role", "already"]),
        ("role create Viewer --scope admin", ["role", "Viewer"]),
        ("role update viewer --scope models:eat", ["scope", "models:eat", "models:read"]),
        ("role delete nobody", ["role", "nobody", "viewer"]),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    run: Run, database: str, command: str, words: list[str]
) -> None:
    answered(run("tenant create search --organization acme"))
    before = trail_of(database)
    refused(run(command), *words)
    assert trail_of(database) == before


def test_every_change_says_who_made_it(run: Run, database: str) -> None:
    answered(run("role create auditor --scope usage:read"))
    [change] = trail_of(database)
    assert change["actor"].startswith("cli:")
    assert (change["action"], change["subject"]) == ("role.create", "role:auditor")


def test_lists_of_nothing_say_what_to_do(run: Run) -> None:
    assert "organization create" in answered(run("organization list"))
    assert "tenant create" in answered(run("tenant list"))
    assert "No tenant was deleted" in answered(run("tenant list --deleted"))


@pytest.mark.parametrize(
    ("text", "name", "seconds", "back"),
    [
        ("requests_per_minute=10", "requests_per_minute", 60, None),
        ("requests_per_hour=10", "requests_per_hour", 3600, None),
        ("requests_per_day=10", "requests_per_day", 0, None),
        ("tokens_per_day=1000000", "tokens_per_day", 0, None),
        ("concurrent_requests=5", "concurrent_requests", 0, None),
        ("requests=100/3600s", "requests_per_hour", 3600, "requests_per_hour=100"),
        ("requests=100/1m", "requests_per_minute", 60, "requests_per_minute=100"),
        ("tokens=100/90s", "tokens_per_90s", 90, None),
        ("tokens=100/1d", "tokens_per_86400s", 86_400, "tokens=100/86400s"),
        ("requests_per_minute=0", "requests_per_minute", 60, None),
    ],
)
def test_limits_are_read_and_written(text: str, name: str, seconds: int, back: str | None) -> None:
    limit = parse_limit(text)
    assert (limit.name, limit.seconds) == (name, seconds)
    assert written(limit) == (back or text)
    assert parse_limit(written(limit)) == limit


@pytest.mark.parametrize(
    "text",
    ["", "10", "requests", "requests=10", "requests_per_minute", "requests_per_minute=", "requests_per_minute=-1",
     "requests_per_minute=1.5", "requests_per_week=1", "requests_per_minute=٣", "requests=1/s", "requests=1/60",
     "concurrent_requests=1/60s", " requests_per_minute=1", "requests_per_minute=1\n",
     "requests_per_minute=" + "9" * 17],
)  # fmt: skip
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(FieldError) as raised:
        parse_limit(text)
    assert raised.value.field == "--limit"
