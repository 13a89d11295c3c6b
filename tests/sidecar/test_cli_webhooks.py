"""Webhooks on the command line: from their making to their end, and what cannot be done, in one line."""

from datetime import UTC, datetime

import pytest
import typer

from sidecar.commands import webhook
from sidecar.commands.session import PlainErrors
from store import ledger
from store.database import Pool
from tests.support.identity_rows import add_tenant
from tests.support.records import usage_record
from tests.support.shell import PEPPER, Shell, row

URL = "https://hooks.example/T0KEN"
NONE = "wh_00000000000000000000"

app = typer.Typer(cls=PlainErrors)
app.add_typer(webhook.app, name="webhook")


@pytest.fixture
def shell(database: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("GATEWAY_KEY_PEPPER", PEPPER)
    shell = Shell(app, database)
    shell.within(add_tenant)
    return shell


def test_a_webhook_from_its_making_to_its_end(shell: Shell) -> None:
    assert "There are no webhooks" in shell.says("webhook list")
    made = shell.json(
        f"webhook create {URL} --tenant search --state failed --state timed_out", "--description", "for us"
    )
    assert made.pop("secret").startswith("whsec_")
    assert (made["tenant_id"], made["states"], made["state"]) == ("ten_a", ["failed", "timed_out"], "active")
    assert shell.json(f"webhook show {made['id']}") == made
    assert shell.json("webhook list --tenant search") == shell.json("webhook list") == [made]
    shown = shell.says(f"webhook show {made['id']}")
    assert (row(shown, "tells of"), row(shown, "description")) == ("failed, timed_out", "for us")
    rotated = shell.run(f"webhook rotate-secret {made['id']} --overlap 1h")
    assert rotated.stdout.startswith("whsec_")
    assert "signs too until" in rotated.stderr
    assert "signs too" not in shell.run(f"webhook rotate-secret {made['id']} --overlap 0").stderr
    shell.refuses(f"webhook delete {made['id']}", "--yes")
    assert "is deleted" in shell.says(f"webhook delete {made['id']} --yes")
    assert shell.json("webhook list") == []
    assert shell.actions() == [f"webhook.{what}" for what in ("create", "rotate", "rotate", "delete")]
    assert "T0KEN" not in str(shell.trail())


def test_deliveries_are_listed_and_made_again(shell: Shell) -> None:
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    records = [usage_record(ended_ms=now_ms) for _ in range(3)]
    made = shell.json(f"webhook create {URL} --tenant search")
    assert "Nothing was queued" in shell.says(f"webhook deliveries {made['id']}")

    async def end(pool: Pool) -> int:
        return await ledger.write(pool, records[:2])

    async def arrive(pool: Pool) -> str:
        return await pool.execute("UPDATE webhook_deliveries SET delivered_at = now(), last_status = 204")

    shell.within(end)
    request_id = records[0].admission.request_id
    assert request_id in shell.says(f"webhook deliveries {made['id']}")
    assert len(shell.json(f"webhook deliveries {made['id']} --limit 1")) == 1
    assert shell.json(f"webhook replay {made['id']} --since 1h") == {"queued": 0}
    shell.within(arrive)
    assert "status 204" in shell.says(f"webhook deliveries {made['id']}")
    assert shell.json(f"webhook replay {made['id']} --request {request_id}") == {"queued": 1}
    assert "1 are on their way" in shell.says(f"webhook replay {made['id']} --since 1h")
    assert shell.json(f"webhook replay {made['id']} --dead") == {"queued": 0}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("webhook create http://hooks.example/ --tenant search", ["url", "https://"]),
        ("webhook create https://127.0.0.1/ --tenant search", ["url", "public"]),
        (f"webhook create {URL} --tenant nobody", ["tenant", "nobody"]),
        (f"webhook create {URL} --tenant search --state rejected", ["states", "rejected"]),
        (f"webhook show {NONE}", ["webhook", NONE]),
        (f"webhook deliveries {NONE}", ["webhook", NONE]),
        (f"webhook rotate-secret {NONE}", ["webhook", NONE]),
        (f"webhook rotate-secret {NONE} --overlap 31d", ["overlap", "30 days"]),
        (f"webhook replay {NONE} --dead", ["webhook", NONE]),
        (f"webhook replay {NONE}", ["request"]),
        (f"webhook replay {NONE} --dead --since 1h", ["request"]),
        (f"webhook replay {NONE} --since soon", ["--since", "soon"]),
        (f"webhook delete {NONE} --yes", ["webhook", NONE]),
    ],
)
def test_what_cannot_be_done_is_one_line(shell: Shell, command: str, words: list[str]) -> None:
    shell.refuses(command, *words)
    assert shell.actions() == []


def test_a_private_url_is_taken_where_it_is_allowed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_WEBHOOK_ALLOW_PRIVATE", "true")
    assert shell.json("webhook create http://127.0.0.1:9000/in --tenant search")["url"] == "http://127.0.0.1:9000/in"
