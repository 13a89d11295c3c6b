"""How is somebody shown their limits, where those come from, and how they stand?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import typer

from control.limit_body import LimitStatus
from quota.limit import Limit, Mode, OnOutage, Unit
from quota.overview import CarriedLimit, overview
from quota.reservation import Standing
from sidecar.commands.fixed_point import dollars
from sidecar.commands.limit_target import Owner
from sidecar.commands.live_limits import Numbered, numbered
from sidecar.tables import print_json, print_table

_COLUMNS = ("LIMIT", "CEILING", "USED", "RESERVED", "LEFT", "EMPTY IN", "FROM")
_SPANS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000))
_NOTHING = ("-", "-", "-", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The limits that hold for somebody, beside how they stand; `failure` says why they have no numbers."""

    owner: Owner
    limits: Numbered
    failure: str


async def look(owner: Owner, *, route: str = "", model: str = "") -> Shown:
    """What holds for somebody's requests: for all, or for those of a route and a model."""
    target = replace(owner.target, route=route, model=model)
    limits, failure = await numbered(overview(owner.carried, target), target)
    return Shown(owner=owner, limits=limits, failure=failure)


def show_limits(shown: Shown, *, as_json: bool) -> None:
    """Print them; on stderr, why there are no numbers."""
    owner = shown.owner
    if as_json:
        now = datetime.now(UTC)
        limits = [_described(owner, limit, standing, now) for limit, standing in shown.limits]
        print_json({"target": f"{owner.kind}:{owner.id}", "limits": limits})
    else:
        rows = [_row(owner, limit, standing) for limit, standing in shown.limits]
        print_table(_COLUMNS, rows, empty=f"No limit holds for {owner.title}.")
    if shown.failure:
        typer.echo(f"How they stand is not known: {shown.failure}.", err=True)


def amount(limit: Limit, number: int) -> str:
    """A number of a limit's unit, for a person."""
    return dollars(number) if limit.unit is Unit.COST else f"{number:,}"


def scope(limit: Limit) -> Iterator[str]:
    """What distinguishes it from others of its name: `per=tenant+model`, `route=/v1/embeddings`, `model=gpt-*`."""
    told = {"per": "+".join(limit.per), "route": limit.route, "model": limit.model}
    return (f"{name}={text}" for name, text in told.items() if text)


def label(limit: Limit) -> str:
    """Its name, with what distinguishes it from others of the name."""
    return ",".join((limit.name, *scope(limit)))


def span(ms: int) -> str:
    """A span of time in its two largest units: `7h 12m`."""
    parts: list[str] = []
    for unit, size in _SPANS:
        count, ms = divmod(ms, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def _described(owner: Owner, found: CarriedLimit, standing: Standing | None, now: datetime) -> dict[str, Any]:
    status = LimitStatus.of(found, standing, now=now)
    return {**status.model_dump(mode="json"), "priority": found.limit.priority, "from": owner.origin(found)}


def _row(owner: Owner, found: CarriedLimit, standing: Standing | None) -> tuple[str, ...]:
    limit = found.limit
    numbers = _NOTHING if standing is None else _numbers(limit, standing)
    return (_told(found), amount(limit, limit.ceiling), *numbers, owner.origin(found))


def _numbers(limit: Limit, standing: Standing) -> tuple[str, str, str, str]:
    return (
        amount(limit, standing.used - standing.reserved),
        amount(limit, standing.reserved),
        amount(limit, max(limit.ceiling - standing.used, 0)),
        span(standing.reset_ms) if standing.reset_ms > 0 else "-",
    )


def _told(found: CarriedLimit) -> str:
    """Its name, and for whom, for what and how it holds, where that is not the usual."""
    limit = found.limit
    said = [
        f"per {' and '.join(found.per)}" if found.per != (found.carrier,) else "",
        f"on {limit.route}" if limit.route else "",
        f"of {limit.model}" if limit.model else "",
        f"burst {amount(limit, limit.burst)}" if limit.burst else "",
        "shadow" if limit.mode is Mode.SHADOW else "",
        f"{limit.on_outage} in an outage" if limit.on_outage is not OnOutage.CLOSED else "",
    ]
    return f"{limit.name} {', '.join(filter(None, said))}".rstrip()
