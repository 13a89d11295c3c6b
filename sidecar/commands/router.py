"""Does a Router keep the contract? `inference-gateway router check URL` asks it, and says what it saw."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import typer

from sidecar.commands.option_group import grouped
from sidecar.commands.session import FAILED, fail
from sidecar.commands.tenant import AsJson
from sidecar.router_check import catalogue
from sidecar.router_check.finding import Finding, Outcome
from sidecar.router_check.probe import RouterAwayError, Target
from sidecar.router_check.run import NoModelError, findings
from sidecar.tables import print_json, print_table
from store.field_error import FieldError

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2

app = typer.Typer(no_args_is_help=True, help="The Router's side of the contract, docs/router.md.")


@app.callback()
def _group() -> None:
    """A group with one command is still a group."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How to ask, and what."""

    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Which model to ask; the first listed one, when left out.")
    ] = None
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="GATEWAY_ROUTER_API_KEY", help="Sent as x-internal-api-key, as the gateway does."
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME:VALUE", help="Sent with each request; may be repeated."),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="CHECK", help="Only these: chat, '*.usage', cancel.running; may be repeated."),
    ] = None
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=600, help="How long each request may take.")
    ] = 60.0


@app.command()
@grouped
def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="The Router itself, such as http://127.0.0.1:9000.")],
    wanted: Wanted,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask a Router what the gateway will ask it, and hold its answers against the contract.

    It gets about 40 short requests, one after the other. What it does not offer is skipped. The exit code is 1 when a
    check fails.
    """
    target = Target(url=_url(url), seconds=wanted.timeout, headers=_headers(wanted))
    try:
        found = asyncio.run(findings(target, _chosen(wanted.only or []), wanted.model))
    except RouterAwayError as error:
        fail(f"there is no Router at {url}: {error}")
    except NoModelError:
        raise FieldError("--model", "is needed: GET /v1/models lists none") from None
    if as_json:
        print_json(found)
    else:
        _print(found)
    if any(finding.outcome is Outcome.FAIL for finding in found):
        raise typer.Exit(FAILED)


def _print(found: list[Finding]) -> None:
    print_table(
        ("CHECK", "RESULT", "SEEN", "CONTRACT"),
        [(one.check, one.outcome, one.seen, f"{one.contract} ({one.section})") for one in found],
        empty="Nothing was checked.",
    )
    counts = Counter(one.outcome for one in found)
    typer.echo(f"{counts[Outcome.PASS]} passed, {counts[Outcome.FAIL]} failed, {counts[Outcome.SKIP]} skipped.")


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise FieldError("URL", "must be like http://127.0.0.1:9000")
    return text.rstrip("/")


def _headers(wanted: Wanted) -> dict[str, str]:
    found = {} if not wanted.api_key else {"x-internal-api-key": wanted.api_key}
    for text in wanted.header or []:
        name, colon, value = text.partition(":")
        if not _TOKEN.fullmatch(name.strip()) or not colon or not value.strip().isprintable():
            raise FieldError("--header", "must be like 'name: value'")
        found[name.strip().lower()] = value.strip()
    return found


def _chosen(patterns: list[str]) -> frozenset[str]:
    try:
        return catalogue.chosen(tuple(patterns))
    except ValueError as error:
        raise FieldError("--only", f"there is no check {error}; they are {', '.join(catalogue.names())}") from None
