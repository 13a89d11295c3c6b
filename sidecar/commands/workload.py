"""Which workloads come with a client certificate? `inference-gateway workload ...`: name, change and remove them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.commands.confirmation import STAYS, Yes, confirm
from sidecar.commands.option_group import grouped
from sidecar.commands.permission_options import ChangeOptions, PermissionOptions, shown
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_fields, print_json, print_table
from store import workloads
from store.database import Pool
from store.permissions import PermissionChanges
from store.tenants import find_tenant
from store.workloads import NewWorkload, Workload, WorkloadChange

app = typer.Typer(no_args_is_help=True, help="Say which client certificates are whose, and what they may do.")

Named = Annotated[
    str,
    typer.Argument(
        metavar="WORKLOAD", help="The workload's id, as in `workload list`, or the name in its certificate."
    ),
]


@dataclass(frozen=True, kw_only=True)
class NewWorkloadOptions(PermissionOptions):
    """Whose workload it is; for inference when it has neither scopes nor roles."""

    tenant: Annotated[str, typer.Option(metavar="TENANT", help="The tenant's id, or its name when only one has it.")]


@app.command("create")
@grouped
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What its certificate says: spiffe://domain/path or dns:host.")
    ],
    wanted: NewWorkloadOptions,
    *,
    as_json: AsJson = False,
) -> None:
    """Let in whoever has a verified certificate with this name.

    With neither --scope nor --role it has the role inference.
    """
    given = wanted.given()

    async def work(pool: Pool) -> Workload:
        owner = await find_tenant(pool, wanted.tenant)
        new = NewWorkload(tenant_id=owner.id, certificate_name=name, **given)
        return await workloads.create(pool, new, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("show")
def show(workload: Named, *, as_json: AsJson = False) -> None:
    """Show what a workload may do."""

    async def work(pool: Pool) -> Workload:
        return await workloads.find(pool, workload)

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only the workloads of this tenant (id or name).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the workloads by the names in their certificates."""

    async def work(pool: Pool) -> list[Workload]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        return await workloads.list_workloads(pool, tenant_id=tenant_id)

    found = with_pool(work)
    if as_json:
        print_json([_described(workload) for workload in found])
        return
    print_table(
        ("ID", "CERTIFICATE", "TENANT", "STATE", "CREATED"),
        [(one.id, one.certificate_name, one.tenant, _state(one), one.created_at) for one in found],
        empty="There are no workloads. Name one: inference-gateway workload create NAME --tenant TENANT",
    )


@app.command("update")
@grouped
def update(workload: Named, wanted: ChangeOptions, *, as_json: AsJson = False) -> None:
    """Change what a workload may do.

    An option replaces all that it has of its kind; what is not named stays.
    """
    changes = PermissionChanges(**wanted.changes())

    async def work(pool: Pool) -> WorkloadChange:
        return await workloads.update(pool, workload, changes, trail=trail())

    done = with_pool(work)
    if as_json:
        print_json({"changed": done.changed, **_described(done.workload)})
        return
    _show(done.workload, as_json=False)
    if not done.changed:
        typer.echo("Nothing has changed: the workload was so already.", err=True)


@app.command("suspend")
def suspend(workload: Named, *, as_json: AsJson = False) -> None:
    """Refuse a workload until it is resumed."""

    async def work(pool: Pool) -> WorkloadChange:
        return await workloads.suspend(pool, workload, now=datetime.now(UTC), trail=trail())

    _report(work, ("is suspended now", "was suspended already"), as_json=as_json)


@app.command("resume")
def resume(workload: Named, *, as_json: AsJson = False) -> None:
    """Let a suspended workload in again."""

    async def work(pool: Pool) -> WorkloadChange:
        return await workloads.resume(pool, workload, trail=trail())

    _report(work, ("is resumed", "was not suspended"), as_json=as_json)


@app.command("delete")
def delete(
    workload: Named,
    *,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove a workload: its certificate opens nothing from now on.

    Its name may be given again. What was used stays in the ledger, and all changes in the audit trail.
    """
    confirm(f"Removing the workload {workload} cannot be undone; suspending it can. {STAYS}", yes=yes)

    async def work(pool: Pool) -> Workload:
        return await workloads.delete(pool, workload, trail=trail())

    gone = with_pool(work)
    if as_json:
        print_json(_described(gone))
    else:
        typer.echo(f"The workload {gone.id} ({gone.certificate_name}, of {gone.tenant}) is removed.")


def _report(work: Callable[[Pool], Awaitable[WorkloadChange]], words: tuple[str, str], *, as_json: bool) -> None:
    """Do the work, and say which of the two words is true: the first when something has changed."""
    done = with_pool(work)
    if as_json:
        print_json({"changed": done.changed, **_described(done.workload)})
        return
    found = done.workload
    at = "" if done.changed or found.suspended_at is None else f", at {cell(found.suspended_at)}"
    happened = words[0] if done.changed else words[1]
    typer.echo(f"The workload {found.id} ({found.certificate_name}, of {found.tenant}) {happened}{at}.")


def _show(workload: Workload, *, as_json: bool) -> None:
    if as_json:
        print_json(_described(workload))
        return
    print_fields(
        [
            ("id", workload.id),
            ("certificate", workload.certificate_name),
            ("tenant", f"{workload.tenant} ({workload.tenant_id})"),
            ("state", _state(workload)),
            *shown(workload),
            ("suspended", workload.suspended_at),
            ("created", workload.created_at),
        ]
    )


def _described(workload: Workload) -> dict[str, object]:
    facts = {field.name: getattr(workload, field.name) for field in fields(workload)}
    first = ("id", "certificate_name", "tenant_id", "tenant")
    return {**{name: facts[name] for name in first}, "state": _state(workload), **facts}


def _state(workload: Workload) -> str:
    return "active" if workload.suspended_at is None else "suspended"
