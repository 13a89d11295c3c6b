"""What became of each request, of all tenants? `inference-gateway requests ...`: list, show and export them."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from control.export import Format
from control.request_body import RequestStatus, dollars, pieces
from extproc.lifecycle import State
from quota.redis import RedisReservations, shard_of
from quota.reservation import QuotaOutage
from sidecar.commands import command_redis
from sidecar.commands.moment import ago
from sidecar.commands.option_group import grouped
from sidecar.commands.session import with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_fields, print_json, print_table
from store import ledger, requests
from store.database import Pool
from store.field_error import FieldError
from store.organizations import list_organizations
from store.requests import MOST_LIVE, ROW_STATES, RequestFilter, RequestLife
from store.tenants import Tenant, find_tenant, list_tenants

app = typer.Typer(no_args_is_help=True, help="List, show and export requests, of all tenants.")
_WAIT_SECONDS = 2.0
_COLUMNS = ("RECEIVED", "REQUEST", "TENANT", "MODEL", "STATE", "CAUSE", "STATUS", "INPUT", "OUTPUT", "COST")

T = TypeVar("T")


class ExportFormat(StrEnum):
    """In what requests can be taken out."""

    JSONL = "jsonl"
    CSV = "csv"
    CLOUDEVENTS = "cloudevents"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Which requests are meant."""

    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only of this tenant (id or name); all, when left out.")
    ] = None
    state: Annotated[
        list[State] | None, typer.Option(metavar="STATE", help="Only those in this state; may be repeated.")
    ] = None
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Only of this model.")] = None
    principal: Annotated[
        str | None, typer.Option(metavar="PRINCIPAL", help="Only of this principal: key_..., wl_..., jwt_....")
    ] = None
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Received since then: 7d, 12h, or an ISO date or time in UTC."),
    ] = None
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Received before then.")] = None

    def filter(self, tenant: Tenant | None) -> RequestFilter:
        """What is meant, of this tenant or of all."""
        now = datetime.now(UTC)
        states = frozenset(self.state or ())
        for state in states - ROW_STATES:
            raise FieldError("--state", f"a request that is {state} is not kept")
        return RequestFilter(
            tenant_id=None if tenant is None else tenant.id,
            states=states,
            model=self.model,
            principal_id=self.principal,
            since=None if self.since is None else ago("--since", self.since, now=now),
            until=None if self.until is None else ago("--until", self.until, now=now),
        )


@app.command("list")
@grouped
def list_all(
    wanted: RequestOptions,
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List requests, newest first.

    Those that run are listed too where REDIS_URL says who knows them.
    """

    async def work(pool: Pool) -> tuple[list[RequestLife], str, dict[str, str]]:
        tenant = None if wanted.tenant is None else await find_tenant(pool, wanted.tenant, deleted=True)
        known = await list_tenants(pool)
        chosen = wanted.filter(tenant)
        nothing: list[RequestLife] = []
        live, failure = await _asked(lambda live: _live(live, [tenant] if tenant else known, chosen), nothing)
        ended = await requests.newest(pool, chosen, limit=limit)
        page = requests.merged([*live, *ended], limit=limit)
        return list(page.lives), failure, {each.id: f"{each.organization}/{each.name}" for each in known}

    found, failure, names = with_pool(work)
    if as_json:
        print_json([RequestStatus.of(life).model_dump(mode="json") for life in found])
    else:
        print_table(_COLUMNS, [_row(life, names) for life in found], empty="There is no such request.")
    _warn(failure)


@app.command("show")
def show(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The x-request-id of its answer.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what became of one request."""

    async def work(pool: Pool) -> tuple[RequestLife | None, str]:
        owners = {shard_of(each.id): each.id for each in await list_organizations(pool)}
        life, failure = await _asked(lambda live: _one(live, list(owners.values()), request_id), None)
        if life is None:
            record = await ledger.find(pool, request_id)
            life = None if record is None else RequestLife.of_record(record)
        return life, failure

    found, failure = with_pool(work)
    if found is None:
        _warn(failure)
        raise FieldError("REQUEST_ID", f"there is no request {request_id[:80]!r}")
    shown = RequestStatus.of(found).model_dump(mode="json")
    if as_json:
        print_json(shown)
        return
    tokens = shown.pop("tokens") or {}
    del shown["object"]
    print_fields([*shown.items(), *((f"{name} tokens", number) for name, number in tokens.items())])


@app.command("export")
@grouped
def export(
    wanted: RequestOptions,
    *,
    format_: Annotated[ExportFormat, typer.Option("--format", help="How it is written.")] = ExportFormat.JSONL,
) -> None:
    """Write all requests that have ended, oldest first.

    As JSON lines, as CSV with a row of names, or as a JSON array of CloudEvents, each the event of a request's end.
    """

    async def work(pool: Pool) -> None:
        tenant = None if wanted.tenant is None else await find_tenant(pool, wanted.tenant, deleted=True)
        async with aclosing(requests.snapshot(pool, wanted.filter(tenant))) as batches:
            async for text in pieces(batches, Format(format_.value)):
                sys.stdout.write(text)

    with_pool(work)


async def _asked(ask: Callable[[RedisReservations], Awaitable[T]], otherwise: T) -> tuple[T, str]:
    """What Redis knows; without it, why it could not be asked."""
    try:
        connected = command_redis.pipe(deadline=_WAIT_SECONDS)
        if connected is None:
            return otherwise, command_redis.UNKNOWN
        async with aclosing(connected) as pipe:
            return await ask(RedisReservations(pipe)), ""
    except (QuotaOutage, ValueError) as error:
        return otherwise, str(error)


async def _live(live: RedisReservations, tenants: list[Tenant], wanted: RequestFilter) -> list[RequestLife]:
    owners = ((each.organization_id, each.id) for each in tenants)
    found = await asyncio.gather(*(live.open_of(*owner, limit=MOST_LIVE) for owner in owners))
    lives = (RequestLife.of_known(known) for of_tenant in found for known in of_tenant)
    return [life for life in lives if wanted.takes(life)]


async def _one(live: RedisReservations, organizations: list[str], request_id: str) -> RequestLife | None:
    """One organization of each shard is named: whose the request is, its record says."""
    found = await asyncio.gather(*(live.find(each, request_id) for each in organizations))
    return next((RequestLife.of_known(known) for known in found if known is not None), None)


def _row(life: RequestLife, names: dict[str, str]) -> tuple[object, ...]:
    admission, ending = life.admission, life.ending
    ended: tuple[object, ...] = (None,) * 5
    if ending is not None:
        cost = f"${dollars(ending.charges.cost)}"
        ended = (ending.cause.value, ending.status, ending.input_tokens, ending.output_tokens, cost)
    return (
        RequestStatus.of(life).received_at,
        admission.request_id,
        names.get(admission.tenant_id, admission.tenant_id),
        admission.model,
        life.state.value,
        *ended,
    )


def _warn(failure: str) -> None:
    if failure:
        typer.echo(f"Which requests run is not known: {failure}.", err=True)
