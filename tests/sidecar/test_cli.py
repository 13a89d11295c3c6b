"""The command line: what a person types, what they read, and what a program gets."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from authz.api_key import keyed_hash, parse
from authz.principal import Handle, PrincipalKind
from quota.charges import Charges
from sidecar.cli import app
from sidecar.settings import StoreSettings
from store import ledger
from store.database import opened
from store.directory import PostgresDirectory
from store.migration import newest
from tests.support.records import usage_record
from tests.support.shell import PEPPER, Shell, answered, refused

COMMANDS = [
    "",
    "tenant",
    "tenant create",
    "tenant list",
    "tenant show",
    "key",
    "key create",
    "key show",
    "key list",
    "key update",
    "key suspend",
    "key resume",
    "key rotate",
    "key revoke",
    "organization",
    "organization create",
    "organization show",
    "organization list",
    "organization update",
    "organization suspend",
    "organization resume",
    "organization delete",
    "tenant update",
    "tenant suspend",
    "tenant resume",
    "tenant delete",
    "plan",
    "limits",
    "limits show",
    "limits set",
    "limits remove",
    "limits simulate",
    "model",
    "model set",
    "model list",
    "model remove",
    "reconcile",
    "plan create",
    "plan show",
    "plan list",
    "plan update",
    "plan delete",
    "role",
    "role create",
    "role show",
    "role list",
    "role update",
    "role delete",
    "signing-key",
    "signing-key list",
    "signing-key rotate",
    "audit",
    "audit verify",
    "audit export",
    "audit list",
    "workload",
    "workload create",
    "workload show",
    "workload list",
    "workload update",
    "workload suspend",
    "workload resume",
    "workload delete",
    "subject",
    "subject suspend",
    "subject resume",
    "subject list",
    "usage",
    "migrate",
    "up",
    "serve",
    "envoy",
    "envoy render",
]
Run = Callable[[str], Result]


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("GATEWAY_") or name == "DATABASE_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def run(command: str) -> Result:
    return Shell(app).run(command)


@pytest.fixture
def gateway(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    return run


def as_json(result: Result) -> Any:
    return json.loads(answered(result))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    text = answered(run(f"{command} --help"))
    assert text.startswith("Usage: ")
    assert "..." not in text.replace("[ARGS]...", "").replace("}...", "").replace("_...", "").replace(":...", "")


def test_a_tenant_is_created_listed_and_shown(gateway: Run) -> None:
    created = as_json(gateway("tenant create search --organization acme --plan pro --json"))
    assert created["organization"] == "acme"
    table = answered(gateway("tenant list"))
    for text in (created["id"], "search", "acme", "pro", "active"):
        assert text in table
    assert as_json(gateway("tenant list --json")) == [created]
    shown = answered(gateway("tenant show search"))
    assert "requests_per_minute" in shown
    assert "1,000,000" in shown
    assert as_json(gateway(f"tenant show {created['id']} --json"))["plan"]["name"] == "pro"


def test_lists_of_nothing_say_what_to_do(gateway: Run) -> None:
    assert "tenant create" in answered(gateway("tenant list"))
    assert "key create" in answered(gateway("key list"))
    assert "Nothing was used" in answered(gateway("usage"))
    for command in ("tenant list", "key list", "usage"):
        assert as_json(gateway(f"{command} --json")) == []


def test_a_key_is_shown_once_and_opens_the_door(gateway: Run, database: str) -> None:
    gateway("tenant create search --organization acme")
    result = gateway("key create --tenant search --name laptop --tag test --expires-in 30d")
    key = parse(answered(result).strip())
    assert key is not None
    assert key.tag == "test"
    assert "shown once" in result.stderr
    assert key.text not in result.stderr

    async def stored_hash() -> bytes | None:
        async with opened(database) as pool:
            principal = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key.id))
            return None if principal is None else principal.secrets[0].hash

    assert asyncio.run(stored_hash()) == keyed_hash(key.text, PEPPER.encode())
    listed = answered(gateway("key list --tenant search"))
    assert key.id in listed
    assert key.text not in listed
    month = datetime.fromisoformat(as_json(gateway("key list --json"))[0]["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29) < month <= timedelta(days=30)


def test_a_key_is_revoked_by_its_id_or_whole_and_again(gateway: Run) -> None:
    gateway("tenant create search --organization acme")
    made = as_json(gateway("key create --tenant search --name laptop --json"))
    assert "is revoked now" in answered(gateway(f"key revoke {made['id']}"))
    whole = gateway(f"key revoke {made['key']}")
    assert "was revoked already" in answered(whole)
    assert made["key"] not in whole.output
    assert as_json(gateway(f"key revoke {made['id']} --json"))["changed"] is False
    assert "revoked" in answered(gateway("key list"))


def test_usage_is_summed(gateway: Run, database: str) -> None:
    tenant = as_json(gateway("tenant create search --organization acme --json"))["id"]
    now = int(datetime.now(UTC).timestamp() * 1000)
    records = [
        usage_record(
            tenant_id=tenant,
            ended_ms=now - 1000,
            output_tokens=1234,
            charges=Charges(cost=1_250_000),
            cached_tokens=4321,
        ),
        usage_record(tenant_id=tenant, ended_ms=now - 1000, model="[red]large[/red]"),
        usage_record(ended_ms=now - 1000),
        usage_record(tenant_id=tenant, ended_ms=now - 10 * 86_400_000),
    ]

    async def write() -> None:
        async with opened(database) as pool:
            await ledger.write(pool, records)

    asyncio.run(write())
    totals = as_json(gateway("usage --group-by tenant --json"))
    assert {total["group"]: total["requests"] for total in totals} == {tenant: 2, "ten_a": 1}
    table = answered(gateway("usage --tenant search --group-by model"))
    for text in ("1,234", "4,321", "$1.25", "$0.00"):
        assert text in table
    assert "[red]large[/red]" in table
    assert "acme/search" in answered(gateway("usage --group-by tenant"))
    assert len(as_json(gateway(f"usage --tenant {tenant} --since 2w --json"))) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("tenant create b --organization acme --plan gold", ["plan", "gold", "enterprise, free, pro"]),
        ("tenant create search --organization acme", ["name", "already"]),
        ("tenant show nobody", ["tenant", "nobody"]),
        ("key create --tenant nobody --name n", ["tenant", "nobody"]),
        ("key create --tenant search --name n --tag LIVE", ["tag", "LIVE"]),
        ("key create --tenant search --name n --expires-in soon", ["--expires-in", "soon", "30d"]),
        ("key create --tenant search --name n --expires-in 2020-01-01", ["--expires-in", "future"]),
        ("key create --tenant search --name n --expires-in 999999w", ["--expires-in"]),
        ("key revoke nothing", ["key", "nothing"]),
        ("usage --since yesterday", ["--since", "yesterday"]),
        ("usage --tenant nobody", ["tenant", "nobody"]),
    ],
)
def test_what_cannot_be_done_is_one_line(gateway: Run, command: str, words: list[str]) -> None:
    gateway("tenant create search --organization acme")
    refused(gateway(command), *words)


def test_no_database_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://admin:hunter2@127.0.0.1:1/gateway")
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    for command in ("tenant list", "migrate"):
        result = run(command)
        refused(result, "database")
        assert "hunter2" not in result.output


def test_all_settings_that_are_wrong_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("tenant list")
    assert result.exit_code == 2
    assert "DATABASE_URL" in result.stderr
    assert "GATEWAY_KEY_PEPPER" in result.stderr
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", "too-short-a-secret")
    result = run("tenant list")
    assert "32 characters" in result.stderr
    assert "too-short-a-secret" not in result.output


def test_a_schema_that_is_missing_says_how_to_make_it(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    refused(run("tenant list"), "inference-gateway migrate")
    assert newest() in answered(run("migrate"))
    assert newest() in answered(run("migrate"))
    answered(run("tenant list"))


@pytest.mark.parametrize("form", ["export {}='{}'\n", "{}={}\n", '# comment\n\n{}="{}"\n'])
def test_beside_a_running_up_nothing_needs_to_be_set(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    variables = {"DATABASE_URL": database, "GATEWAY_KEY_PEPPER": PEPPER}
    if form.startswith("{}="):
        variables["DATABASE_URL"] = f"'{database}'"
    (state / "admin.env").write_text("".join(form.format(*item) for item in variables.items()))
    monkeypatch.setenv("GATEWAY_STATE", str(state))
    # Another pepper would make keys that the running gateway does not know.
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", "q" * 32)
    answered(run("tenant create search --organization acme"))
    made = as_json(run("key create --tenant search --name n --json"))

    async def stored_hash() -> bytes | None:
        async with opened(database) as pool:
            principal = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, made["id"]))
            return None if principal is None else principal.secrets[0].hash

    assert asyncio.run(stored_hash()) == keyed_hash(made["key"], PEPPER.encode())


def test_the_environment_comes_before_the_file(gateway: Run, tmp_path: Path) -> None:
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "admin.env").write_text("DATABASE_URL=postgresql://127.0.0.1:1/none\n")
    answered(gateway("tenant list"))


@pytest.mark.parametrize("content", [b"DATABASE_URL='open", b"\xff\xfe", b"", b"export\n"])
def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "admin.env").write_bytes(content)
    result = run("tenant list")
    assert result.exit_code == 2
    assert "DATABASE_URL: not set" in result.stderr


def test_secrets_do_not_show_in_the_settings(gateway: Run) -> None:
    answered(gateway("tenant list"))
    assert PEPPER not in repr(StoreSettings.model_validate({"DATABASE_URL": "x", "key_pepper": PEPPER}))


RENDER = "envoy render --tls-dir /tls --socket-dir /run/gw --admin-socket /run/admin.sock --workers 3"


def test_the_envoy_configuration_is_rendered_with_the_addresses(tmp_path: Path) -> None:
    text = answered(run(f"{RENDER} --router models.internal:9000 --port 10443"))
    for address in ("models.internal", "9000", "10443", "/tls/", "/run/gw/worker-2.sock", "/run/admin.sock"):
        assert address in text
    assert answered(run(f"{RENDER} --router models.internal:9000 --port 10443 --output envoy.yaml")) == ""
    assert (tmp_path / "envoy.yaml").read_text() == text


def test_an_envoy_configuration_that_cannot_be_written_is_one_line() -> None:
    refused(run(f"{RENDER} --router nowhere"), "--router")
    refused(run(f"{RENDER} --router a:1 --output missing/envoy.yaml"), "missing/envoy.yaml")


def test_the_sidecar_names_every_setting_that_is_missing() -> None:
    result = run("serve")
    assert result.exit_code == 2
    for variable in ("DATABASE_URL", "REDIS_URL", "GATEWAY_KEY_PEPPER", "GATEWAY_SOCKET_DIR"):
        assert f"{variable}: not set" in result.stderr


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "sidecar", "tenant", "list"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=60,
    )
    assert ran.returncode == 2
    assert "DATABASE_URL" in ran.stderr
    assert "Traceback" not in ran.stderr
