"""Which scopes go by one name? `inference-gateway role ...`: create, change and delete roles."""

from typing import Annotated

import typer

from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_fields, print_json, print_table
from store import roles
from store.database import Pool
from store.roles import Role, find_role, list_roles

app = typer.Typer(no_args_is_help=True, help="Create, change and delete roles: named sets of scopes.")

Named = Annotated[str, typer.Argument(metavar="ROLE", help="The role's name.")]
Scopes = Annotated[
    list[str],
    typer.Option("--scope", metavar="SCOPE", help="A scope of the role, such as models:read; may be repeated."),
]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a to z, 0 to 9 and -, up to 63, a letter first.")],
    *,
    scope: Scopes,
    as_json: AsJson = False,
) -> None:
    """Create a role."""

    async def work(pool: Pool) -> Role:
        return await roles.create(pool, name, scope, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List every role with its scopes."""
    found = with_pool(list_roles)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "SCOPES"),
        [(role.name, " ".join(role.scopes)) for role in found],
        empty="There are no roles. Make one: inference-gateway role create NAME --scope SCOPE",
    )


@app.command("show")
def show(role: Named, *, as_json: AsJson = False) -> None:
    """Show one role."""

    async def work(pool: Pool) -> Role:
        return await find_role(pool, role)

    _show(with_pool(work), as_json=as_json)


@app.command("update")
def update(role: Named, *, scope: Scopes, as_json: AsJson = False) -> None:
    """Change what a role stands for, for all who have it.

    The scopes that are given are all that it then has. Each worker goes by them within a second.
    """

    async def work(pool: Pool) -> Role:
        return await roles.update(pool, role, scope, trail=trail())

    _show(with_pool(work), as_json=as_json)


@app.command("delete")
def delete(role: Named, *, as_json: AsJson = False) -> None:
    """Delete a role that no key and no workload has.

    A token that names it goes on without its scopes.
    """

    async def work(pool: Pool) -> Role:
        return await roles.delete(pool, role, trail=trail())

    gone = with_pool(work)
    if as_json:
        print_json(gone)
    else:
        typer.echo(f"The role {gone.name} is deleted. No key and no workload had it.")


def _show(role: Role, *, as_json: bool) -> None:
    if as_json:
        print_json(role)
    else:
        print_fields([("name", role.name), ("scopes", " ".join(role.scopes)), ("created", role.created_at)])
