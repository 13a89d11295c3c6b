"""`router check` on the command line: the stand-in Router keeps the contract, and each way to break it is found."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from demo.router import running
from sidecar.commands import router
from sidecar.commands.session import PlainErrors
from sidecar.router_check import catalogue
from sidecar.router_check.finding import Finding, Outcome
from tests.sidecar.broken_router import Change, Said, broken
from tests.support.postgres import Loop, running_loop
from tests.support.shell import Shell

ROOT = Path(__file__).parent.parent.parent
WORDS = ("--header", 'x-demo-decision: {"model":"m"}', "--header", 'x-demo-cost: {"total_usd":0.25}')
# Slow enough that two events are never read at once.
SLOW = ("--header", "x-demo-interval-ms: 20")

app = typer.Typer(cls=PlainErrors)
app.add_typer(router.app, name="router")
shell = Shell(app)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with running_loop() as loop:
        yield loop


@contextmanager
def _served(loop: Loop, context: AbstractAsyncContextManager[str]) -> Iterator[str]:
    url = loop.run(context.__aenter__())
    try:
        yield url
    finally:
        loop.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def url(loop: Loop) -> Iterator[str]:
    with _served(loop, running(interval_ms=0)) as url:
        yield url


def _findings(url: str, *words: str) -> tuple[int, list[Finding]]:
    result = shell.run(f"router check {url} --json", *words)
    return result.exit_code, msgspec.json.decode(result.stdout, type=list[Finding])


@pytest.mark.parametrize("command", ["router", "router check"])
def test_every_command_explains_itself(command: str) -> None:
    text = shell.says(f"{command} --help")
    assert "Usage: " in text
    assert "..." not in text.replace("[ARGS]...", "")


@pytest.mark.parametrize("where", [(), ("--header", "x-demo-words: comment")], ids=["headers", "comments"])
def test_the_stand_in_router_keeps_the_whole_contract(url: str, where: tuple[str, ...]) -> None:
    code, found = _findings(url, *WORDS, *SLOW, *where)
    assert {one.check: one.seen for one in found if one.outcome is not Outcome.PASS} == {}
    assert code == 0
    assert tuple(one.check for one in found) == catalogue.names()


def test_a_table_says_what_was_seen_and_counts(url: str) -> None:
    result = shell.run(f"router check {url} --only chat.answer --only chat.usage --only words.cost")
    assert result.exit_code == 0
    assert "8 tokens in and 12 tokens out" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 passed, 0 failed, 1 skipped."


# By a header that the stand-in obeys: which checks then fail, each of those that are meant.
STEERED = {
    "*.answer": ("x-demo-status: 500",),
    "*.usage": ("x-demo-usage: none",),
    "*.stream": ("x-demo-status: 503",),
    "*.stream-end": ("x-demo-fault: close-mid-stream",),
    "*.stream-usage": ("x-demo-usage: none",),
    "*.stream-pace": ("x-demo-batch: 1000",),
    "*.stream-events": ("x-demo-usage: 5,900",),
    "*.plain-text": ("x-demo-encoding: gzip",),
    "words": ("x-demo-decision: nothing", 'x-demo-cost: {"total_usd":"a lot"}'),
}


@pytest.mark.parametrize("checks", list(STEERED))
def test_a_steered_fault_is_found_in_every_dialect(url: str, checks: str) -> None:
    headers = [word for header in STEERED[checks] for word in ("--header", header)]
    code, found = _findings(url, "--only", checks, *headers)
    assert code == 1
    assert {one.check: one.seen for one in found if one.outcome is not Outcome.FAIL} == {}


def _unless_known(said: Said) -> Said:
    return said.answering(400) if b"x_unknown_field" in said.sent else said


def _error_in_plain_text(said: Said) -> Said:
    return replace(said, content_type="text/plain") if said.status == 400 else said


def _half_an_event_more(said: Said) -> Said:
    return replace(said, body=said.body + b"data: {}\n") if "event-stream" in said.content_type else said


def _an_id_of_its_own(said: Said) -> Said:
    return replace(said, body=said.body.replace(b'"resp_', b'"r_'))


def _no_list(said: Said) -> Said:
    return said.answering(200, b"[]") if said.path == "/v1/models" else said


def _without_a_tenant(said: Said) -> Said:
    return said.answering(400) if said.method == "POST" and "x-tenant-id" not in said.headers else said


def _hurt_by_cancels(said: Said) -> Said:
    return said.answering(500) if said.method == "DELETE" else said


def _deaf_to_cancels(said: Said) -> Said:
    return said.answering(202) if said.method == "DELETE" else said


def _hurt_by_a_break(said: Said) -> Said:
    return said.answering(503) if said.after_a_break else said


BROKEN: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown fields": (_unless_known, ("*.unknown-fields",)),
    "errors": (_error_in_plain_text, ("*.errors",)),
    "half an event": (_half_an_event_more, ("*.stream-form",)),
    "ids": (_an_id_of_its_own, ("responses.id",)),
    "models": (_no_list, ("models.list",)),
    "headers": (_without_a_tenant, ("headers",)),
    "unknown cancels": (_hurt_by_cancels, ("cancel",)),
    "cancels": (_deaf_to_cancels, ("cancel.running",)),
    "breaks": (_hurt_by_a_break, ("close",)),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_router_is_found(loop: Loop, name: str) -> None:
    change, checks = BROKEN[name]
    with _served(loop, broken(change)) as url:
        code, found = _findings(url, "--model", "m", *(word for check in checks for word in ("--only", check)))
    assert code == 1
    assert {one.check: one.seen for one in found if one.outcome is not Outcome.FAIL} == {}


def test_every_check_can_fail() -> None:
    shown = (*STEERED, *(check for _, checks in BROKEN.values() for check in checks))
    assert catalogue.chosen(shown) == frozenset(catalogue.names())


def _nothing_but_chat(said: Said) -> Said:
    return said if said.path in {"/v1/chat/completions", "/v1/models"} else said.answering(404)


def test_what_a_router_does_not_offer_is_skipped(loop: Loop) -> None:
    with _served(loop, broken(_nothing_but_chat)) as url:
        code, found = _findings(url)
    assert code == 0
    outcomes = {one.check: one.outcome for one in found}
    assert Outcome.FAIL not in outcomes.values()
    assert {outcome for check, outcome in outcomes.items() if check.startswith("chat.")} == {Outcome.PASS}
    assert {outcome for check, outcome in outcomes.items() if check.startswith("infer.")} == {Outcome.SKIP}
    assert outcomes["cancel.running"] is Outcome.SKIP
    assert outcomes["cancel.unknown"] is Outcome.PASS


def test_what_a_router_writes_cannot_move_the_cursor(loop: Loop) -> None:
    def _coloured(said: Said) -> Said:
        return said.answering(500, b"\x1b[31mred\x07")

    with _served(loop, broken(_coloured)) as url:
        result = shell.run(f"router check {url} --model m --only chat.answer")
    assert "red" in result.stdout
    assert result.stdout.replace("\n", "").isprintable()


def test_the_router_gets_the_headers_it_wants_and_none_that_the_gateway_keeps(loop: Loop) -> None:
    seen: list[dict[str, str]] = []

    def _noted(said: Said) -> Said:
        seen.append(said.headers)
        return said

    with _served(loop, broken(_noted)) as url:
        words = ("--api-key", "sesame", "--header", "authorization: Bearer x", "--only", "chat.answer")
        assert _findings(url, *words)[0] == 0
    assert all(headers["x-internal-api-key"] == "sesame" for headers in seen)
    assert all(headers["authorization"] == "Bearer x" for headers in seen)
    assert not [headers for headers in seen if "accept-encoding" in headers]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("ftp://127.0.0.1",), "URL"),
        (("127.0.0.1:9000",), "URL"),
        (("http://127.0.0.1:9", "--header", "nothing"), "--header"),
        (("http://127.0.0.1:9", "--header", "a b: c"), "--header"),
        (("http://127.0.0.1:9", "--only", "chat.usages"), "there is no check chat.usages"),
        (("http://127.0.0.1:9",), "there is no Router"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(words: tuple[str, ...], complaint: str) -> None:
    result = shell.run("router check", *words)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_list_of_models_one_must_be_named(loop: Loop) -> None:
    with _served(loop, broken(_no_list)) as url:
        shell.refuses(f"router check {url}", "--model")
        assert _findings(url, "--model", "m", "--only", "chat.answer")[0] == 0


def _headings() -> set[str]:
    lines: Any = (ROOT / "docs" / "router.md").read_text().splitlines()
    return {line.removeprefix("## ") for line in lines if line.startswith("## ")}


def test_every_check_points_to_a_section_of_the_contract(url: str) -> None:
    _, found = _findings(url)
    assert {one.section for one in found} <= _headings()
