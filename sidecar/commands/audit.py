"""What does the audit trail say, and is it whole? `inference-gateway audit ...`: verify, export and list it."""

import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from sidecar.commands.moment import ago
from sidecar.commands.session import FAILED, fail, pepper, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import print_json, print_table
from store import audit_reader
from store.audit_reader import Broken, Fault, Intact, Row
from store.database import Pool
from store.field_error import FieldError

app = typer.Typer(no_args_is_help=True, help="Verify, export and list who changed what.")
_HASH_BYTES = 32


@app.command("verify")
def verify(
    *,
    head: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head that was printed earlier, and must still be there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Walk the chain from its first row to its head.

    Ends with status 1 when a row is not what was written, and names the first one. Note the head elsewhere: that the
    newest rows were removed shows only against it.
    """
    noted = None if head is None else _hash(head)

    async def work(pool: Pool) -> Intact | Broken:
        return await audit_reader.verify(pool, pepper=pepper(), noted=noted)

    match with_pool(work):
        case Intact(count=count, head=last):
            if as_json:
                print_json({"intact": True, "count": count, "head": last.hex()})
            else:
                typer.echo(f"The audit trail is intact.\nrows  {count}\nhead  {last.hex()}")
        case Broken(number=number, fault=fault):
            if as_json:
                print_json({"intact": False, "number": number, "fault": fault})
                raise typer.Exit(FAILED)
            fail(f"the audit trail is broken at row {number}: {_explained(fault)}")


@app.command("export")
def export(
    *,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only from then on: 7d, 12h, or an ISO time. All, when left out.")
    ] = None,
) -> None:
    """Write the rows as JSON lines, oldest first."""
    start = None if since is None else ago("--since", since, now=datetime.now(UTC))

    async def work(pool: Pool) -> None:
        async with aclosing(audit_reader.export(pool, since=start)) as rows:
            async for row in rows:
                sys.stdout.write(msgspec.json.encode(row).decode() + "\n")

    with_pool(work)


@app.command("list")
def list_all(
    *,
    subject: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="Only what was done to it, such as tenant:ten_... or key:...")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many rows at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the newest rows, newest first."""

    async def work(pool: Pool) -> list[Row]:
        return await audit_reader.latest(pool, limit=limit, subject=subject)

    found = with_pool(work)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NUMBER", "AT", "ACTOR", "SOURCE", "ACTION", "SUBJECT", "TENANT"),
        [(row.number, row.at, row.actor, row.source, row.action, row.subject, row.tenant_id) for row in found],
        empty="There is nothing in the audit trail.",
    )


def _hash(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != _HASH_BYTES:
        raise FieldError("--head", f"{text!r} is not a hash of {2 * _HASH_BYTES} hexadecimal digits")
    return found


def _explained(fault: Fault) -> str:
    match fault:
        case Fault.CHANGED:
            return "it is not what was written, or was written with another pepper"
        case Fault.MISSING:
            return "it is missing"
        case Fault.OUT_OF_ORDER:
            return "it does not follow the row before it"
        case Fault.CUT_OFF:
            return "the trail ends before it, and the head that was given is not in it"
