"""Keys, workloads and subjects on the command line: what a person types, what they read, and what a program gets."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from authz.api_key import keyed_hash, parse
from authz.principal import Handle, Principal, PrincipalKind
from sidecar.commands import key, subject, workload
from sidecar.commands.option_group import grouped
from sidecar.commands.session import PlainErrors
from store.database import Pool
from store.directory import PostgresDirectory
from store.key_uses import touch
from tests.support.identity_rows import NOON, add_tenant
from tests.support.shell import PEPPER, Shell, row

SPIFFE = "spiffe://acme.example/search"
NARROW = (
    "--scope usage:read --scope inference:text --role viewer --model gpt-* --network 10.0.0.0/8 "
    "--limit requests_per_minute=5 --limit concurrent_requests=2"
)
app = typer.Typer(cls=PlainErrors)
app.add_typer(key.app, name="key")
app.add_typer(workload.app, name="workload")
app.add_typer(subject.app, name="subject")


def principal(shell: Shell, key_id: str) -> Principal:
    async def find(pool: Pool) -> Principal | None:
        return await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key_id))

    found = shell.within(find)
    assert found is not None
    return found


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    shell = Shell(app, database)
    shell.within(add_tenant)
    return shell


def test_a_key_is_made_narrow_and_shown(shell: Shell) -> None:
    made = shell.json(f"key create --tenant search --name laptop {NARROW} --expires-in 30d")
    text = shell.says(f"key show {made['id']}")
    assert [row(text, name) for name in ("scopes", "roles", "models", "networks", "limits", "state")] == [
        *("inference:text, usage:read", "viewer", "gpt-*", "10.0.0.0/8"),
        *("requests_per_minute=5, concurrent_requests=2", "active"),
    ]
    shown = shell.json(f"key show {made['key']}")
    assert {**shown, "key": made["key"]} == made
    assert made["limits"][0]["ceiling"] == 5
    assert "key" not in shown
    for command in (f"key show {made['id']}", "key list", f"key show {made['id']} --json"):
        assert made["key"].split("_")[3] not in shell.run(command).output


def test_a_key_is_for_inference_unless_something_else_is_said(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    assert (made["roles"], made["scopes"], made["models"], made["networks"], made["limits"]) == (
        *(["inference"], [], [], [], []),
    )
    text = shell.says(f"key show {made['id']}")
    assert (row(text, "models"), row(text, "networks")) == ("all", "anywhere")


def test_the_list_says_when_a_key_was_last_used(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    assert shell.json("key list")[0]["last_used_at"] is None

    async def use(pool: Pool) -> None:
        await touch(pool, {made["id"]: NOON})

    shell.within(use)
    table = shell.says("key list --tenant search")
    assert "LAST USED" in table
    assert "2026-01-01 12:00:00Z" in table
    assert shell.json("key list")[0]["last_used_at"] == "2026-01-01T12:00:00Z"


def test_a_change_replaces_what_it_names_and_clears_what_it_is_told_to(shell: Shell) -> None:
    made = shell.json(f"key create --tenant search --name n {NARROW} --expires-in 30d")
    done = shell.json(f"key update {made['id']} --scope models:read --clear-networks --clear-expiry --name server")
    assert (done["changed"], done["scopes"], done["networks"], done["expires_at"], done["name"]) == (
        *(True, ["models:read"], [], None, "server"),
    )
    for name in ("roles", "models", "limits", "created_at"):
        assert done[name] == made[name]
    emptied = shell.json(f"key update {made['id']} --clear-scopes --clear-roles --clear-models --clear-limits")
    assert [emptied[name] for name in ("scopes", "roles", "models", "limits")] == [[], [], [], []]
    again = shell.run(f"key update {made['id']} --clear-scopes")
    assert "Nothing has changed" in again.stderr
    assert shell.actions() == ["key.create", "key.update", "key.update"]


def test_a_key_is_suspended_and_resumed(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    assert "is suspended now" in shell.says(f"key suspend {made['key']}")
    assert shell.json(f"key suspend {made['id']}")["changed"] is False
    assert "was suspended already, at " in shell.says(f"key suspend {made['id']}")
    assert "suspended" in shell.says("key list")
    assert "is resumed" in shell.says(f"key resume {made['id']}")
    assert "was not suspended" in shell.says(f"key resume {made['id']}")
    assert shell.json("key list")[0]["state"] == "active"


def test_a_rotated_key_is_shown_once_and_opens_the_door_beside_the_former(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n --tag test")
    result = shell.run(f"key rotate {made['id']}")
    new = parse(result.stdout.strip())
    assert new is not None
    assert (new.id, new.tag) == (made["id"], "test")
    assert "shown once" in result.stderr
    assert new.text not in result.stderr
    current, former = principal(shell, new.id).secrets
    assert current.hash == keyed_hash(new.text, PEPPER.encode())
    assert former.hash == keyed_hash(made["key"], PEPPER.encode())
    assert former.expires_at is not None
    assert timedelta(hours=23) < former.expires_at - datetime.now(UTC) <= timedelta(hours=24)
    assert "works until" in row(shell.says(f"key show {new.id}"), "former key")


def test_a_second_rotation_says_what_it_cuts_short(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    shell.says(f"key rotate {made['id']} --overlap 7d")
    assert "The key before that one" in shell.run(f"key rotate {made['id']} --overlap 1h").stderr
    at_once = shell.json(f"key rotate {made['id']} --overlap 0")
    assert at_once["cut_short"] is not None
    assert at_once["previous_expires_at"] is None
    [current] = principal(shell, made["id"]).secrets
    assert current.hash == keyed_hash(at_once["key"], PEPPER.encode())
    assert "DELETE /v1/sessions" in shell.run(f"key rotate {made['id']} --overlap 0").stderr


def test_a_rotation_of_a_key_that_opens_nothing_says_so(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    shell.says(f"key suspend {made['id']}")
    assert "is suspended" in shell.run(f"key rotate {made['id']}").stderr


def test_revoking_is_for_good(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    shell.says(f"key rotate {made['id']}")
    assert "is revoked now" in shell.says(f"key revoke {made['id']}")
    assert "was revoked already, at " in shell.says(f"key revoke {made['id']}")
    for command in ("suspend", "resume", "rotate", "update --name m"):
        name, *rest = command.split(" ", 1)
        shell.refuses(f"key {name} {made['id']} {' '.join(rest)}", made["id"], "revoked")
    assert shell.actions() == ["key.create", "key.rotate", "key.revoke"]


def test_a_workload_from_its_name_to_its_end(shell: Shell) -> None:
    made = shell.json(f"workload create {SPIFFE} --tenant search {NARROW}")
    assert made["certificate_name"] == SPIFFE
    assert row(shell.says(f"workload show {SPIFFE}"), "limits") == "requests_per_minute=5, concurrent_requests=2"
    assert shell.json(f"workload show {made['id']}") == made
    assert shell.json("workload list --tenant search") == shell.json("workload list") == [made]
    assert SPIFFE in shell.says("workload list")
    changed = shell.json(f"workload update {SPIFFE} --clear-models --role inference")
    assert (changed["changed"], changed["models"], changed["roles"]) == (True, [], ["inference"])
    assert "Nothing has changed" in shell.run(f"workload update {SPIFFE} --clear-models").stderr
    assert "is suspended now" in shell.says(f"workload suspend {SPIFFE}")
    assert "was suspended already, at " in shell.says(f"workload suspend {SPIFFE}")
    assert shell.json(f"workload resume {made['id']}")["changed"] is True
    shell.refuses(f"workload delete {SPIFFE}", "--yes", SPIFFE)
    assert "is removed" in shell.says(f"workload delete {SPIFFE} --yes")
    assert shell.json("workload list") == []
    assert shell.actions() == [f"workload.{what}" for what in ("create", "update", "suspend", "resume", "delete")]


def test_a_subject_is_suspended_and_resumed(shell: Shell) -> None:
    assert "No subject was ever suspended" in shell.says("subject list")
    assert "is suspended now" in shell.says("subject suspend jwt_0a1b0a1b0a1b0a1b0a1b --tenant search")
    assert "was suspended already, at " in shell.says("subject suspend jwt_0a1b0a1b0a1b0a1b0a1b --tenant search")
    assert "jwt_0a1b0a1b0a1b0a1b0a1b" in shell.says("subject list --tenant search")
    done = shell.json("subject resume jwt_0a1b0a1b0a1b0a1b0a1b --tenant ten_a")
    assert (done["changed"], done["state"]) == (True, "active")
    assert "was not suspended" in shell.says("subject resume jwt_0a1b0a1b0a1b0a1b0a1b --tenant search")
    assert [one["id"] for one in shell.json("subject list")] == ["jwt_0a1b0a1b0a1b0a1b0a1b"]
    assert shell.actions() == ["subject.suspend", "subject.resume"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("key create --tenant search --name n --scope root", ["scopes", "root", "inference:text"]),
        ("key create --tenant search --name n --role root", ["roles", "root", "viewer"]),
        ("key create --tenant search --name n --model a*b", ["models", "a*b"]),
        ("key create --tenant search --name n --network 10.0.0.1/8", ["networks", "10.0.0.0/8"]),
        ("key create --tenant search --name n --limit many", ["--limit", "many"]),
        (
            "key create --tenant search --name n --limit tokens_per_day=5,per=tenant",
            ["--limit", "tokens_per_day", "tenant"],
        ),
        ("key create --tenant search --name n --tag LIVE", ["--tag", "LIVE"]),
        ("key show none", ["key", "none"]),
        ("key update none --name m", ["key", "none"]),
        ("key update none --scope admin --clear-scopes", ["--clear-scopes"]),
        ("key update none --expires-in 1d --clear-expiry", ["--clear-expiry", "--expires-in"]),
        ("key rotate none", ["key", "none"]),
        ("key rotate none --overlap soon", ["--overlap", "soon"]),
        ("key suspend none", ["key", "none"]),
        ("workload create acme --tenant search", ["certificate_name", "acme", "spiffe://"]),
        (f"workload create {SPIFFE} --tenant nobody", ["tenant", "nobody"]),
        ("workload update none --clear-roles", ["workload", "none"]),
        ("workload delete none --yes", ["workload", "none"]),
        ("subject suspend key_a --tenant search", ["subject", "key_a", "jwt_"]),
        ("subject suspend jwt_aaaaaaaaaaaaaaaaaaaa --tenant nobody", ["tenant", "nobody"]),
        ("subject resume jwt_aaaaaaaaaaaaaaaaaaaa --tenant search", ["subject", "jwt_aaaaaaaaaaaaaaaaaaaa"]),
    ],
)
def test_what_cannot_be_done_is_one_line(shell: Shell, command: str, words: list[str]) -> None:
    shell.refuses(command, *words)
    assert shell.actions() == []


def test_an_overlap_has_an_end(shell: Shell) -> None:
    made = shell.json("key create --tenant search --name n")
    shell.refuses(f"key rotate {made['id']} --overlap 31d", "overlap", "30 days")


def test_the_fields_of_a_group_are_options_of_the_command() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wanted:
        colour: Annotated[str, typer.Option()]
        layer: Annotated[list[int] | None, typer.Option()] = None

    painted: list[tuple[str, Wanted, bool]] = []
    painter = typer.Typer()

    @painter.command("paint")
    @grouped
    def paint(wall: str, wanted: Wanted, *, twice: bool = False) -> None:
        """Paint a wall."""
        painted.append((wall, wanted, twice))

    assert CliRunner().invoke(painter, "north --colour red --layer 1 --layer 2 --twice").exit_code == 0
    assert CliRunner().invoke(painter, "south --colour blue").exit_code == 0
    assert CliRunner().invoke(painter, "south").exit_code == 2
    assert painted == [
        *(("north", Wanted(colour="red", layer=[1, 2]), True), ("south", Wanted(colour="blue"), False)),
    ]
    assert paint.__doc__ == "Paint a wall."
