"""What would other limits have refused? `inference-gateway limits simulate`: a period of the ledger, replayed."""

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from quota.limit import Dimension, Limit, Window
from quota.simulation import LimitOutcome, Report
from quota.simulation import simulate as replay
from sidecar.commands.limit_option import parse_limits, written
from sidecar.commands.limit_standings import amount
from sidecar.commands.limit_target import find_tenant, replaced
from sidecar.commands.moment import ago
from sidecar.commands.option_group import grouped
from sidecar.commands.session import with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_json, print_table
from store import model_rates, organizations
from store.carried_limits import CarriedLimits, carried_limits
from store.database import Pool
from store.field_error import FieldError
from store.past_requests import Period, past_requests

_LONGEST = {
    Window.CALENDAR_HOUR: timedelta(hours=1),
    Window.CALENDAR_DAY: timedelta(days=1),
    Window.CALENDAR_MONTH: timedelta(days=31),
    Window.LEASE: timedelta(hours=1),  # what runs longer has not begun yet, as the replay sees it
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to replay, against which limits."""

    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Whose limits they are: ORG/NAME, a name or an id.")
    ] = None
    organization: Annotated[
        str | None, typer.Option(metavar="ORG", help="Whose limits they are, with all its tenants: a name or an id.")
    ] = None
    since: Annotated[str, typer.Option(metavar="WHEN", help="From when on: 7d, 12h, or an ISO time in UTC.")] = "7d"
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Until when; now, when left out.")] = None
    limit: Annotated[
        list[str] | None, typer.Option("--limit", metavar="LIMIT", help="A proposed limit, may be repeated.")
    ] = None
    only_proposed: Annotated[
        bool, typer.Option("--only-proposed", help="Without the limits that hold now beside them.")
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proposal:
    """Limits that an owner is to carry."""

    carrier: Dimension
    owner_id: str
    title: str
    tenant_ids: Sequence[str]
    limits: tuple[Limit, ...]


@grouped
def simulate(wanted: Wanted, *, as_json: AsJson = False) -> None:
    """Say what proposed limits would have refused.

    A period of the ledger is replayed against them. They stand in place of limits that hold now and count the same,
    beside the others. Each request takes what it reserved then, runs as long as it ran, and is settled by what it used.
    What was refused then is not in the ledger, and a caller that names no maximum might have made do with less room.
    """
    if (wanted.tenant is None) is (wanted.organization is None):
        raise FieldError("--tenant", "give either a tenant or an --organization")
    if not wanted.limit and wanted.only_proposed:
        raise FieldError("--only-proposed", "needs a --limit")
    now = datetime.now(UTC)
    since = ago("--since", wanted.since, now=now)
    until = now if wanted.until is None else ago("--until", wanted.until, now=now)
    if since >= until:
        raise FieldError("--until", f"{cell(until)} is not after {cell(since)}")

    async def work(pool: Pool) -> tuple[_Proposal, Report]:
        proposal = await _proposal(pool, wanted)
        return proposal, await _replayed(pool, proposal, (since, until), only=wanted.only_proposed)

    proposal, report = with_pool(work)
    if as_json:
        print_json({"since": since, "until": until, **_described(report, proposal)})
    else:
        _print(report, proposal, f"{cell(since)} to {cell(until)}")


async def _proposal(pool: Pool, wanted: Wanted) -> _Proposal:
    texts = wanted.limit or ()
    if wanted.tenant is not None:
        tenant = await find_tenant(pool, wanted.tenant)
        return _Proposal(
            carrier=Dimension.TENANT,
            owner_id=tenant.id,
            title=f"tenant {tenant.organization}/{tenant.name}",
            tenant_ids=[tenant.id],
            limits=parse_limits(texts, Dimension.TENANT),
        )
    owner = await organizations.find_organization(pool, wanted.organization or "")
    return _Proposal(
        carrier=Dimension.ORGANIZATION,
        owner_id=owner.id,
        title=f"organization {owner.name}",
        tenant_ids=await organizations.tenant_ids(pool, owner.id),
        limits=parse_limits(texts, Dimension.ORGANIZATION),
    )


async def _replayed(pool: Pool, proposal: _Proposal, span: tuple[datetime, datetime], *, only: bool) -> Report:
    since, until = span
    carried = _with(await carried_limits(pool, proposal.tenant_ids), proposal, only=only)
    card = await model_rates.load(pool)
    period = Period(tenant_ids=proposal.tenant_ids, since=since - _reach(carried), until=until)
    async with aclosing(past_requests(pool, period, card)) as requests:
        return await replay(requests, carried.of, counted_from_ms=int(since.timestamp() * 1000))


def _with(carried: CarriedLimits, proposal: _Proposal, *, only: bool) -> CarriedLimits:
    """What would be carried: the proposed limits in place of what counts the same, or they alone."""
    owner, limits = proposal.owner_id, proposal.limits
    of_organization = proposal.carrier is Dimension.ORGANIZATION
    if only:
        alone = {owner: limits}
        return CarriedLimits(
            organizations=alone if of_organization else {}, tenants={} if of_organization else alone, principals={}
        )
    if of_organization:
        merged = replaced(carried.organizations.get(owner, ()), limits, proposal.carrier)
        return replace(carried, organizations={owner: merged})
    merged = replaced(carried.tenants[owner], limits, proposal.carrier)
    return replace(carried, tenants={**carried.tenants, owner: merged})


def _reach(carried: CarriedLimits) -> timedelta:
    """How long before the period a request may have been that still counts in it."""
    owners: Iterable[Iterable[Limit]] = (
        *carried.organizations.values(),
        *carried.tenants.values(),
        *carried.principals.values(),
    )
    reaches = (_LONGEST.get(limit.window, timedelta(seconds=limit.seconds)) for limits in owners for limit in limits)
    return max(reaches, default=timedelta())


def _print(report: Report, proposal: _Proposal, period: str) -> None:
    typer.echo(
        f"{proposal.title}, {period}: {report.requests:,} requests, "
        f"{report.refused:,} would have been refused ({_share(report.refused, report.requests)})."
    )
    print_table(
        ("LIMIT", "PEAK", "FULL", "REFUSED", "SHARE", "FIRST", "LAST"),
        [_row(outcome) for outcome in report.limits],
        empty="No limit held for any of them.",
    )
    callers = [
        (_told(outcome), each.principal_id, each.model, each.requests)
        for outcome in report.limits
        for each in outcome.callers
    ]
    if callers:
        print_table(("REFUSED BY", "PRINCIPAL", "MODEL", "REQUESTS"), callers, empty="")


def _row(outcome: LimitOutcome) -> tuple[Any, ...]:
    limit = outcome.limit
    return (
        _told(outcome),
        amount(limit, outcome.peak),
        _share(outcome.peak, limit.ceiling),
        outcome.refused,
        _share(outcome.refused, outcome.requests),
        # As text, which may be broken between date and time.
        cell(_moment(outcome.first_ms)),
        cell(_moment(outcome.last_ms)),
    )


def _told(outcome: LimitOutcome) -> str:
    return f"{written(outcome.limit).replace(',', ', ')} ({outcome.owner})"


def _described(report: Report, proposal: _Proposal) -> dict[str, Any]:
    limits = [
        {
            "limit": written(outcome.limit),
            "proposed": outcome.owner is proposal.carrier and outcome.limit in proposal.limits,
            "owner": outcome.owner,
            "ceiling": outcome.limit.ceiling,
            "requests": outcome.requests,
            "refused": outcome.refused,
            "share": outcome.share,
            "first": _moment(outcome.first_ms),
            "last": _moment(outcome.last_ms),
            "peak": outcome.peak,
            "peak_of": outcome.peak_subject,
            "callers": outcome.callers,
            "others": outcome.others,
        }
        for outcome in report.limits
    ]
    return {"requests": report.requests, "refused": report.refused, "limits": limits}


def _moment(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
