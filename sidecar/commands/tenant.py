"""Who may use the gateway? `inference-gateway tenant ...`: create tenants and look at them."""

from typing import Annotated, Any

import typer

from sidecar.commands.session import with_pool
from sidecar.tables import print_fields, print_json, print_table
from store import plans, tenants
from store.api_keys import list_keys
from store.database import Pool
from store.tenants import Tenant

app = typer.Typer(no_args_is_help=True, help="Create tenants and look at them.")

Named = Annotated[
    str, typer.Argument(metavar="TENANT", help="The tenant's id (ten_...), or its name when only one has it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name, unique in its organization.")],
    *,
    organization: Annotated[
        str, typer.Option(metavar="ORG", help="The organization's name or id; made when there is none of this name.")
    ],
    plan: Annotated[
        str, typer.Option(metavar="PLAN", help="The plan that sets its limits: free, pro, enterprise.")
    ] = "free",
    as_json: AsJson = False,
) -> None:
    """Create a tenant on a plan.

    Its organization is created too when there is none of this name.
    """

    async def work(pool: Pool) -> Tenant:
        return await tenants.create_tenant(pool, name, organization=organization, plan=plan)

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List every tenant with its organization and plan."""
    found = with_pool(tenants.list_tenants)
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "NAME", "ORGANIZATION", "PLAN", "STATE", "CREATED"),
        [
            (tenant.id, tenant.name, tenant.organization, tenant.plan, _state(tenant), tenant.created_at)
            for tenant in found
        ],
        empty="There are no tenants. Make one: inference-gateway tenant create NAME --organization ORG",
    )


@app.command("show")
def show(tenant: Named, *, as_json: AsJson = False) -> None:
    """Show one tenant and the limits of its plan."""

    async def work(pool: Pool) -> tuple[Tenant, plans.Plan, int]:
        found = await tenants.find_tenant(pool, tenant)
        keys = await list_keys(pool, tenant_id=found.id)
        return found, await plans.get(pool, found.plan), len(keys)

    found, plan, keys = with_pool(work)
    if as_json:
        print_json({"tenant": found, "plan": plan, "keys": keys})
        return
    limits = [(limit.name, limit.ceiling) for limit in plan.limits]
    print_fields([*_fields(found), ("metering", plan.metering), *limits, ("keys", keys)])


def _show(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(tenant)
    else:
        print_fields(_fields(tenant))


def _fields(tenant: Tenant) -> list[tuple[str, Any]]:
    return [
        ("id", tenant.id),
        ("name", tenant.name),
        ("organization", f"{tenant.organization} ({tenant.organization_id})"),
        ("plan", tenant.plan),
        ("state", _state(tenant)),
        ("created", tenant.created_at),
    ]


def _state(tenant: Tenant) -> str:
    suspended = tenant.suspended_at is not None or tenant.organization_suspended_at is not None
    return "suspended" if suspended else "active"
