"""Who owns tenants? `inference-gateway organization ...`: create, change, suspend and delete organizations."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from quota.limit import Dimension
from sidecar.commands.confirmation import Yes, confirm, counted, foretold, told
from sidecar.commands.limit_option import Limits, field, parse_limits
from sidecar.commands.list_option import replacement
from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_fields, print_json, print_table
from store import organizations
from store.database import Pool
from store.deletion import Deletion, foreseen
from store.field_error import FieldError
from store.organizations import Organization, OrganizationChanges, find_organization, list_organizations
from store.tenants import Tenant, list_tenants

app = typer.Typer(no_args_is_help=True, help="Create, change, suspend and delete organizations.")

Named = Annotated[str, typer.Argument(metavar="ORG", help="The organization's name or its id (org_...).")]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The organization's name, unique.")],
    *,
    limit: Limits = None,
    as_json: AsJson = False,
) -> None:
    """Create an organization.

    Its limits hold for all its tenants together, beside those of each of them; their days and months are those of UTC.
    """
    limits = parse_limits(limit or (), Dimension.ORGANIZATION)

    async def work(pool: Pool) -> Organization:
        return await organizations.create(pool, name, limits=limits, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List every organization."""
    found = with_pool(list_organizations)
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "NAME", "STATE", "CREATED"),
        [(one.id, one.name, _state(one), one.created_at) for one in found],
        empty="There are no organizations. Make one: inference-gateway organization create NAME",
    )


@app.command("show")
def show(organization: Named, *, as_json: AsJson = False) -> None:
    """Show one organization and its tenants."""

    async def work(pool: Pool) -> tuple[Organization, list[Tenant]]:
        found = await find_organization(pool, organization)
        return found, [tenant for tenant in await list_tenants(pool) if tenant.organization_id == found.id]

    found, tenants = with_pool(work)
    if as_json:
        print_json({"organization": found, "tenants": [{"id": one.id, "name": one.name} for one in tenants]})
        return
    print_fields([*_fields(found), ("tenants", ", ".join(one.name for one in tenants) or None)])


@app.command("update")
def update(
    organization: Named,
    *,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name from now on.")] = None,
    limit: Limits = None,
    clear_limits: Annotated[bool, typer.Option("--clear-limits", help="Leave only its tenants' limits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Change an organization; its id stays.

    The limits that are given are all that it then has. Each worker goes by them within a second.
    """
    limits = replacement("limits", limit, clear=clear_limits)
    carried = None if limits is None else parse_limits(limits, Dimension.ORGANIZATION)
    changes = OrganizationChanges(name=name, limits=carried)

    async def work(pool: Pool) -> Organization:
        return await organizations.update(pool, organization, changes, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("suspend")
def suspend(organization: Named, *, as_json: AsJson = False) -> None:
    """Refuse all its tenants until it is resumed."""

    async def work(pool: Pool) -> Organization:
        return await organizations.suspend(pool, organization, now=datetime.now(UTC), trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("resume")
def resume(organization: Named, *, as_json: AsJson = False) -> None:
    """Let its tenants in again.

    But for those that are suspended themselves.
    """

    async def work(pool: Pool) -> Organization:
        return await organizations.resume(pool, organization, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("delete")
def delete(
    organization: Named,
    *,
    with_tenants: Annotated[
        bool, typer.Option("--with-tenants", help="Delete its tenants too; refused otherwise while it has any.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete an organization, for good.

    With --with-tenants, the keys of its tenants are revoked and their workloads deleted. What was used stays in the
    ledger, and all changes in the audit trail.
    """

    async def look(pool: Pool) -> tuple[Organization, Deletion]:
        found = await find_organization(pool, organization)
        return found, await foreseen(pool, await organizations.tenant_ids(pool, found.id))

    found, expected = with_pool(look)
    if expected.tenants and not with_tenants:
        held = counted(expected.tenants, "tenant")
        raise FieldError("--with-tenants", f"is needed: the organization {found.name!r} has {held}")
    confirm(foretold(_subject(found, expected), expected), yes=yes)

    async def work(pool: Pool) -> Deletion:
        now = datetime.now(UTC)
        return await organizations.delete(pool, found.id, now=now, trail=trail(), with_tenants=with_tenants)

    done = with_pool(work)
    if as_json:
        print_json({"organization": found, "deletion": done})
    else:
        typer.echo(told(_subject(found, done), done))


def _subject(organization: Organization, deletion: Deletion) -> str:
    return f"the organization {organization.name} ({organization.id}) with {counted(deletion.tenants, 'tenant')}"


def _show(organization: Organization, *, as_json: bool) -> None:
    if as_json:
        print_json(organization)
    else:
        print_fields(_fields(organization))


def _fields(organization: Organization) -> list[tuple[str, object]]:
    return [
        ("id", organization.id),
        ("name", organization.name),
        ("state", _state(organization)),
        ("created", organization.created_at),
        *map(field, organization.limits),
    ]


def _state(organization: Organization) -> str:
    return "active" if organization.suspended_at is None else "suspended"
