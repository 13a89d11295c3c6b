"""Organizations, tenants, plans and roles on the command line: what a person reads, and what a program gets."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from authz.api_key import generate
from sidecar.cli import app
from store import api_keys
from store.api_keys import NewKey
from store.database import Pool
from tests.support.shell import PEPPER, Shell, answered, row
from tests.support.trail import trail


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    monkeypatch.chdir(tmp_path)
    return Shell(app, database)


def add_key(shell: Shell, tenant_id: str) -> None:
    async def work(pool: Pool) -> None:
        new = NewKey(key=generate(), tenant_id=tenant_id, name="laptop")
        await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=trail(PEPPER))

    shell.within(work)


def test_an_organization_lives_and_goes(shell: Shell) -> None:
    made = shell.json("organization create acme")
    assert made["id"] in shell.says("organization list")
    assert shell.json("organization list") == [made]
    assert "apex" in shell.says("organization update acme --name apex")
    assert "suspended" in shell.says("organization suspend apex")
    assert shell.json("organization resume apex")["suspended_at"] is None
    shell.says("tenant create search --organization apex")
    assert "search" in shell.says("organization show", made["id"])
    shell.refuses("organization delete apex --yes", "--with-tenants", "1 tenant")
    assert "Revoked: 0 keys" in shell.says("organization delete apex --with-tenants --yes")
    assert shell.json("organization list") == shell.json("tenant list") == []


def test_a_suspended_organizations_tenants_are_shown_so(shell: Shell) -> None:
    shell.says("tenant create search --organization acme")
    shell.says("organization suspend acme")
    assert "suspended" in shell.says("tenant list")


def test_a_tenant_is_made_with_all_it_can_have(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{\n  "deniedProviders": ["other"]\n}\n')
    options = "--limit requests_per_minute=5 --limit tokens=9/1h --network 10.0.0.0/8 --network 192.0.2.7"
    made = shell.json(
        f"tenant create search --organization acme --plan pro {options} --require-certificate"
        " --routing-policy @policy.json --time-zone Europe/Berlin"
    )
    assert [limit["name"] for limit in made["limits"]] == ["requests_per_minute", "tokens_per_hour"]
    assert made["networks"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert made["routing_policy"] == {"tenantId": made["id"], "deniedProviders": ["other"]}
    assert (made["certificate_required"], made["time_zone"]) == (True, "Europe/Berlin")
    shown = shell.json("tenant show search")
    assert shown["tenant"] == made
    assert shown["plan"]["name"] == "pro"
    assert {limit["name"]: limit["ceiling"] for limit in shown["limits"]}["requests_per_minute"] == 5
    text = shell.says("tenant show search")
    assert row(text, "time zone") == "Europe/Berlin"
    for word in ("10.0.0.0/8, 192.0.2.7/32", "required", "deniedProviders", "concurrent_requests", "tokens_per_hour"):
        assert word in text


def test_what_is_not_given_stays_as_it_is(shell: Shell) -> None:
    policy = ("--routing-policy", '{"defaultStrategy": "cheapest"}')
    options = "--limit requests_per_minute=5 --network 10.0.0.0/8 --require-certificate"
    made = shell.json(f"tenant create search --organization acme {options}", *policy)
    moved = shell.json("tenant update search --name find --plan pro")
    assert moved == {**made, "name": "find", "plan": "pro"}
    assert shell.json("tenant update find") == moved
    cleared = "--clear-limits --clear-networks --clear-routing-policy --no-require-certificate"
    bare = shell.json(f"tenant update find {cleared} --time-zone Asia/Kolkata")
    none: dict[str, Any] = {"limits": [], "networks": [], "routing_policy": None, "certificate_required": False}
    assert bare == {**moved, **none, "time_zone": "Asia/Kolkata"}


def test_a_tenant_is_suspended_and_resumed(shell: Shell) -> None:
    shell.says("tenant create search --organization acme")
    assert "suspended" in shell.says("tenant suspend search")
    first = shell.json("tenant show search")["tenant"]["suspended_at"]
    assert shell.json("tenant suspend search")["suspended_at"] == first
    assert "active" in shell.says("tenant resume search")


def test_a_deleted_tenant_says_what_became_of_its_keys_and_history(shell: Shell) -> None:
    made = shell.json("tenant create search --organization acme")
    add_key(shell, made["id"])
    shell.refuses("tenant delete search", "--yes", "revokes 1 key", "stays in the ledger")
    assert shell.json("tenant show search")["keys"] == 1
    done = shell.says("tenant delete search --yes")
    for word in ("search", made["id"], "Revoked: 1 key.", "stays in the ledger", "audit trail"):
        assert word in done
    shell.refuses("tenant show search", "search")
    assert "There are no tenants" in shell.says("tenant list")
    assert made["id"] in shell.says("tenant list --deleted")
    assert "deleted" in shell.says("tenant show", made["id"])
    again = shell.json("tenant create search --organization acme")
    gone = shell.json("tenant delete --yes", again["id"])
    assert gone["tenant"]["id"] == again["id"]
    assert gone["deletion"] == {"tenants": 1, "keys_revoked": 0, "workloads_deleted": 0, "subjects_deleted": 0}


@pytest.mark.parametrize(("answer", "deleted"), [(b"y\n", True), (b"n\n", False)])
def test_at_a_terminal_a_person_is_asked(shell: Shell, *, answer: bytes, deleted: bool) -> None:
    shell.says("tenant create search --organization acme")
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
    assert shell.json("tenant list") == [] or not deleted
    assert ("Deleted: the tenant search" in ran.stdout) is deleted


def test_a_plan_lives_and_goes(shell: Shell) -> None:
    made = shell.json("plan create gold --limit requests_per_minute=5 --limit tokens_per_day=9")
    assert shell.json("plan show gold") == made
    assert "requests_per_minute=5 tokens_per_day=9" in shell.says("plan list")
    assert shell.json("plan update gold --metering inline") == {**made, "metering": "inline"}
    changed = shell.run("plan update gold --limit concurrent_requests=3")
    assert "concurrent_requests" in answered(changed)
    assert "does not limit any more: requests_per_minute=5, tokens_per_day=9" in changed.stderr
    shell.says("tenant create search --organization acme --plan gold")
    shell.refuses("plan delete gold", "acme/search")
    shell.says("tenant update search --plan free")
    assert "deleted" in shell.says("plan delete gold")
    assert "gold" not in shell.says("plan list")
    assert shell.json("plan update free --clear-limits")["limits"] == []


def test_a_plan_has_a_priority(shell: Shell) -> None:
    assert shell.json("plan create gold --limit requests_per_minute=5 --priority 8")["priority"] == 8
    assert row(shell.says("plan update gold --priority 0"), "priority") == "0"
    assert shell.json("plan show gold")["priority"] == 0
    assert "PRIORITY" in shell.says("plan list")
    assert shell.run("plan update gold --priority 10").exit_code == 2


def test_an_organization_has_limits_for_all_its_tenants(shell: Shell) -> None:
    made = shell.json("organization create acme --limit cost_per_month=$25.50 --limit requests_per_day=9,per=tenant")
    assert [(limit["name"], limit["ceiling"]) for limit in made["limits"]] == [
        *(("cost_per_month", 25_500_000), ("requests_per_day", 9)),
    ]
    assert shell.json("organization show acme")["organization"] == made
    assert shell.json("organization update acme --name apex") == {**made, "name": "apex"}
    text = shell.says("organization show apex")
    assert (row(text, "cost_per_month"), row(text, "requests_per_day")) == ("$25.50", "9, per=tenant")
    assert shell.json("organization update apex --clear-limits")["limits"] == []
    assert shell.actions() == ["organization.create", "organization.update", "organization.update"]


def test_limits_are_shown_with_all_that_they_say(shell: Shell) -> None:
    limit = "requests_per_minute=1200,burst=20,per=principal+model,route=/v1/embeddings,mode=shadow"
    shell.says(f"plan create gold --limit {limit} --limit requests_per_minute=7")
    assert f"{limit} requests_per_minute=7" in shell.says("plan list")
    assert "1,200, burst=20, per=principal+model, route=/v1/embeddings, mode=shadow" in shell.says("plan show gold")
    changed = shell.run("plan update gold --limit requests_per_minute=8")
    assert f"does not limit any more: {limit}." in changed.stderr


def test_a_role_lives_and_goes(shell: Shell) -> None:
    made = shell.json("role create auditor --scope usage:read --scope models:read")
    assert made["scopes"] == ["models:read", "usage:read"]
    assert shell.json("role show auditor") == made
    assert "models:read usage:read" in shell.says("role list")
    assert shell.json("role update auditor --scope requests:read")["scopes"] == ["requests:read"]
    assert "deleted" in shell.says("role delete auditor")
    assert "auditor" not in shell.says("role list")


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
        ("tenant update search --time-zone Berlin", ["time_zone", "Berlin", "Europe/Berlin"]),
        ("tenant update search --limit requests_per_minute=5,burst=6", ["--limit", "burst", "1 to its ceiling, 5"]),
        ("organization update acme --limit many", ["--limit", "many"]),
        ("organization update acme --limit tokens_per_day=1 --clear-limits", ["--clear-limits"]),
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
def test_what_cannot_be_done_is_one_line_and_changes_nothing(shell: Shell, command: str, words: list[str]) -> None:
    shell.says("tenant create search --organization acme")
    before = shell.trail()
    shell.refuses(command, *words)
    assert shell.trail() == before


def test_every_change_says_who_made_it(shell: Shell) -> None:
    shell.says("role create auditor --scope usage:read")
    [change] = shell.trail()
    assert change["actor"].startswith("cli:")
    assert (change["action"], change["subject"]) == ("role.create", "role:auditor")


def test_lists_of_nothing_say_what_to_do(shell: Shell) -> None:
    assert "organization create" in shell.says("organization list")
    assert "tenant create" in shell.says("tenant list")
    assert "No tenant was deleted" in shell.says("tenant list --deleted")
