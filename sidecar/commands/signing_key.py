"""With which keys does the gateway sign identity tokens? `inference-gateway signing-key ...`: list and rotate them."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from authz.key_ring import SigningKey
from sidecar.commands.session import pepper, trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_json, print_table
from store import signing_keys
from store.database import Pool
from store.signing_keys import StoredSigningKey

app = typer.Typer(no_args_is_help=True, help="List and rotate the keys that sign identity tokens.")


@app.command("list")
def list_all(*, as_json: AsJson = False) -> None:
    """List the keys, retired ones included.

    Their ids are those that stand in the tokens.
    """
    now = datetime.now(UTC)

    async def work(pool: Pool) -> list[StoredSigningKey]:
        return await signing_keys.list_keys(pool, now)

    found = with_pool(work)
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "STATE", "CREATED", "SIGNS FROM", "RETIRES"),
        [(key.id, key.state, key.created_at, key.active_from, key.retired_at) for key in found],
        empty="There are no signing keys. The first one is made when the sidecar starts.",
    )


@app.command("rotate")
def rotate(
    *,
    at_once: Annotated[
        bool, typer.Option("--now", help="The key was stolen: the new one signs now, the former ones end now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the next key.

    It signs in ten minutes, when every Router can know it. The former one stays published for another ten. With --now,
    a Router that holds older public keys refuses requests until it fetches them again.
    """
    now = datetime.now(UTC)

    async def work(pool: Pool) -> SigningKey:
        return await signing_keys.rotate(pool, pepper(), trail(), now, at_once=at_once)

    key = with_pool(work)
    if as_json:
        print_json({"id": key.id, "created_at": key.created_at, "active_from": key.active_from})
        return
    when = "now" if at_once else f"from {cell(key.active_from)} on"
    typer.echo(f"The key {key.id} is published and signs {when}.")
