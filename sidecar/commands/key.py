"""Which keys open the gateway? `inference-gateway key ...`: make, list and revoke them."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from authz.api_key import generate, parse
from sidecar.commands.moment import ahead
from sidecar.commands.session import pepper, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_json, print_table
from store import api_keys
from store.api_keys import NewKey, Revocation, StoredKey
from store.database import Pool
from store.field_error import FieldError
from store.tenants import find_tenant

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@app.command("create")
def create(
    *,
    tenant: Annotated[str, typer.Option(metavar="TENANT", help="The tenant's id, or its name when only one has it.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What the key is for, for people.")],
    tag: Annotated[str, typer.Option(metavar="TAG", help="Stands in the key: 1 to 12 lower-case letters.")] = "live",
    expires_in: Annotated[
        str | None, typer.Option(metavar="SPAN", help="When it ends: 30d, 12h, or an ISO date. Never, when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once.

    The key itself is not stored and cannot be shown again.
    """
    now = datetime.now(UTC)
    expires_at = None if expires_in is None else ahead("--expires-in", expires_in, now=now)
    try:
        key = generate(tag)
    except ValueError as error:
        raise FieldError("--tag", str(error)) from None

    async def work(pool: Pool) -> StoredKey:
        owner = await find_tenant(pool, tenant)
        new = NewKey(key=key, tenant_id=owner.id, name=name, expires_at=expires_at)
        return await api_keys.create(pool, new, pepper=pepper())

    stored = with_pool(work)
    if as_json:
        print_json({"key": key.text, **_described(stored, now)})
        return
    typer.echo(key.text)
    until = "does not expire" if stored.expires_at is None else f"expires {cell(stored.expires_at)}"
    typer.echo(
        f"This is shown once: keep it now. Its id is {stored.id}, its tenant {stored.tenant}; it {until}.", err=True
    )


@app.command("list")
def list_all(
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only the keys of this tenant (id or name).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the keys that were made, by their public ids."""
    now = datetime.now(UTC)

    async def work(pool: Pool) -> list[StoredKey]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        return await api_keys.list_keys(pool, tenant_id=tenant_id)

    found = with_pool(work)
    if as_json:
        print_json([_described(key, now) for key in found])
        return
    print_table(
        ("ID", "NAME", "TENANT", "TAG", "STATE", "EXPIRES", "CREATED"),
        [(key.id, key.name, key.tenant, key.tag, key.state(now), key.expires_at, key.created_at) for key in found],
        empty="There are no keys. Make one: inference-gateway key create --tenant TENANT --name NAME",
    )


@app.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's public id, as in `key list`, or the whole key.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make a key useless from now on.

    Revoking it again changes nothing.
    """
    now = datetime.now(UTC)
    whole = parse(key)
    key_id = key if whole is None else whole.id

    async def work(pool: Pool) -> Revocation:
        return await api_keys.revoke(pool, key_id, now=now)

    done = with_pool(work)
    if as_json:
        print_json({"was_active": done.was_active, **_described(done.key, now)})
        return
    when = f"{done.key.id} ({done.key.name}, of {done.key.tenant})"
    happened = "is revoked now" if done.was_active else f"was revoked already, at {cell(done.key.revoked_at)}"
    typer.echo(f"The key {when} {happened}.")


def _described(key: StoredKey, now: datetime) -> dict[str, object]:
    return {
        "id": key.id,
        "name": key.name,
        "tenant_id": key.tenant_id,
        "tenant": key.tenant,
        "tag": key.tag,
        "state": key.state(now),
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "created_at": key.created_at,
    }
