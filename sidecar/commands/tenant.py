"""Who may use the gateway? `inference-gateway tenant ...`: create, change, suspend and delete tenants."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from sidecar.commands import limit_option
from sidecar.commands.confirmation import Yes, confirm, foretold, told
from sidecar.commands.option_group import grouped
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant_options import NewTenantOptions, TenantOptions
from sidecar.tables import print_fields, print_json, print_table
from store import tenants
from store.database import Pool
from store.deletion import Deletion, foreseen
from store.limits import effective_limits
from store.plans import Plan, find_plan
from store.tenants import DEFAULT_TIME_ZONE, Tenant, find_tenant, list_tenants

app = typer.Typer(no_args_is_help=True, help="Create, change, suspend and delete tenants.")

Named = Annotated[
    str, typer.Argument(metavar="TENANT", help="The tenant's id (ten_...), or its name when only one has it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("create")
@grouped
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name, unique in its organization.")],
    wanted: NewTenantOptions,
    *,
    as_json: AsJson = False,
) -> None:
    """Create a tenant on a plan.

    Its organization is created too when there is none of this name. A limit takes the place of the plan's that counts
    the same (the same name, per, route and model), or is added to them.
    """
    new = wanted.new(name)

    async def work(pool: Pool) -> Tenant:
        return await tenants.create(pool, new, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(
    *,
    deleted: Annotated[bool, typer.Option("--deleted", help="Those that were deleted, instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every tenant with its organization and plan."""

    async def work(pool: Pool) -> list[Tenant]:
        return await list_tenants(pool, deleted=deleted)

    found = with_pool(work)
    if as_json:
        print_json([_described(tenant) for tenant in found])
        return
    print_table(
        ("ID", "NAME", "ORGANIZATION", "PLAN", "STATE", "DELETED" if deleted else "CREATED"),
        [
            (one.id, one.name, one.organization, one.plan, _state(one), one.deleted_at or one.created_at)
            for one in found
        ],
        empty="No tenant was deleted."
        if deleted
        else "There are no tenants. Make one: inference-gateway tenant create NAME --organization ORG",
    )


@app.command("show")
def show(tenant: Named, *, as_json: AsJson = False) -> None:
    """Show one tenant, its plan, and the limits that hold for it.

    One that was deleted is shown by its id.
    """

    async def work(pool: Pool) -> tuple[Tenant, Plan, Deletion]:
        found = await find_tenant(pool, tenant, deleted=True)
        return found, await find_plan(pool, found.plan), await foreseen(pool, [found.id])

    found, plan, has = with_pool(work)
    limits = effective_limits(plan.limits, found.limits)
    if as_json:
        described = {"tenant": _described(found), "plan": plan, "limits": limits}
        print_json({**described, "keys": has.keys_revoked, "workloads": has.workloads_deleted})
        return
    shown = [limit_option.field(limit) for limit in limits]
    counts = [("keys", has.keys_revoked), ("workloads", has.workloads_deleted)]
    print_fields([*_fields(found), ("metering", plan.metering), *shown, *counts])


@app.command("update")
@grouped
def update(tenant: Named, wanted: TenantOptions, *, as_json: AsJson = False) -> None:
    """Change a tenant.

    What is not given stays as it is. The limits or networks that are given are all that it then has of its own. Each
    worker goes by them within a second.
    """
    changes = wanted.changes()

    async def work(pool: Pool) -> Tenant:
        return await tenants.update(pool, tenant, changes, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("suspend")
def suspend(tenant: Named, *, as_json: AsJson = False) -> None:
    """Refuse all its callers until it is resumed; nothing of it is lost."""

    async def work(pool: Pool) -> Tenant:
        return await tenants.suspend(pool, tenant, now=datetime.now(UTC), trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("resume")
def resume(tenant: Named, *, as_json: AsJson = False) -> None:
    """Let its callers in again, unless its organization is suspended."""

    async def work(pool: Pool) -> Tenant:
        return await tenants.resume(pool, tenant, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("delete")
def delete(tenant: Named, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a tenant, for good.

    Its keys are revoked and its workloads deleted; its name becomes free. What it used stays in the ledger, and all
    changes in the audit trail.
    """

    async def look(pool: Pool) -> tuple[Tenant, Deletion]:
        found = await find_tenant(pool, tenant)
        return found, await foreseen(pool, [found.id])

    found, expected = with_pool(look)
    subject = f"the tenant {found.name} ({found.id}) of {found.organization}"
    confirm(foretold(subject, expected), yes=yes)

    async def work(pool: Pool) -> Deletion:
        return await tenants.delete(pool, found.id, now=datetime.now(UTC), trail=trail())

    done = with_pool(work)
    if as_json:
        print_json({"tenant": _described(found), "deletion": done})
    else:
        typer.echo(told(subject, done))


def _show(tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(_described(tenant))
    else:
        own = [limit_option.field(limit) for limit in tenant.limits]
        print_fields([*_fields(tenant), *own])


def _described(tenant: Tenant) -> dict[str, Any]:
    policy = tenant.routing_policy
    return {**asdict(tenant), "routing_policy": None if policy is None else json.loads(policy)}


def _fields(tenant: Tenant) -> list[tuple[str, Any]]:
    optional = [
        ("time zone", tenant.time_zone if tenant.time_zone != DEFAULT_TIME_ZONE else ""),
        ("networks", ", ".join(tenant.networks)),
        ("certificate", "required" if tenant.certificate_required else ""),
        ("routing policy", tenant.routing_policy),
        ("deleted", tenant.deleted_at),
    ]
    return [
        ("id", tenant.id),
        ("name", tenant.name),
        ("organization", f"{tenant.organization} ({tenant.organization_id})"),
        ("plan", tenant.plan),
        ("state", _state(tenant)),
        ("created", tenant.created_at),
        *((name, value) for name, value in optional if value),
    ]


def _state(tenant: Tenant) -> str:
    if tenant.deleted_at is not None:
        return "deleted"
    if tenant.suspended_at is not None:
        return "suspended"
    return "active" if tenant.organization_suspended_at is None else "suspended (its organization)"
