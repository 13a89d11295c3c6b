"""What was used? `inference-gateway usage`: the ledger, summed."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.commands.fixed_point import dollars
from sidecar.commands.moment import ago
from sidecar.commands.session import with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_json, print_table
from store import usage as sums
from store.database import Pool
from store.tenants import find_tenant, list_tenants
from store.usage import GroupBy, UsageTotal

_HEADINGS = {
    GroupBy.DAY: "DAY (UTC)",
    GroupBy.MODEL: "MODEL",
    GroupBy.PRINCIPAL: "PRINCIPAL",
    GroupBy.ROUTE: "ROUTE",
    GroupBy.TENANT: "TENANT",
}
_COLUMNS = ("REQUESTS", "COMPLETED", "ESTIMATED", "INPUT TOKENS", "CACHED", "OUTPUT TOKENS", "REASONING", "COST")


def usage(
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only this tenant (id or name); all, when left out.")
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="From when on: 7d, 12h, or an ISO date or time in UTC.")
    ] = "7d",
    group_by: Annotated[GroupBy, typer.Option(help="What to sum by.")] = GroupBy.DAY,
    as_json: AsJson = False,
) -> None:
    """Sum requests, tokens and their cost.

    By day, model, principal, route or tenant. Cached tokens are among those of the input,
    reasoning tokens among those of the output.
    """
    until = datetime.now(UTC)
    start = ago("--since", since, now=until)

    async def work(pool: Pool) -> tuple[list[UsageTotal], dict[str, str]]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant, deleted=True)).id
        found = await sums.usage(pool, tenant=tenant_id, since=start, until=until, group_by=group_by)
        if group_by is not GroupBy.TENANT:
            return found, {}
        return found, {known.id: f"{known.organization}/{known.name}" for known in await list_tenants(pool)}

    found, names = with_pool(work)
    if as_json:
        print_json(found)
        return
    print_table(
        (_HEADINGS[group_by], *_COLUMNS),
        [(names.get(total.group, total.group), *_values(total)) for total in found],
        empty=f"Nothing was used since {start:%Y-%m-%d %H:%M:%SZ}.",
    )


def _values(total: UsageTotal) -> tuple[int | str, ...]:
    return (
        total.requests,
        total.completed,
        total.estimated,
        total.input_tokens,
        total.cached_tokens,
        total.output_tokens,
        total.reasoning_tokens,
        dollars(total.cost_micros),
    )
