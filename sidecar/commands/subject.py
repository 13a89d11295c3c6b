"""Which subjects of JWTs are refused? `inference-gateway subject ...`: suspend them, resume them, list them."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

import typer

from sidecar.commands.session import trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_json, print_table
from store import subjects
from store.database import Pool
from store.subjects import Subject, SubjectChange, SubjectName
from store.tenants import find_tenant

app = typer.Typer(no_args_is_help=True, help="Suspend the subjects of JWTs, resume and list them.")

SubjectId = Annotated[
    str, typer.Argument(metavar="ID", help="The subject's principal id, as in the ledger and the audit trail.")
]
OfTenant = Annotated[
    str, typer.Option("--tenant", metavar="TENANT", help="The tenant it acts for: id, or name when only one has it.")
]


@app.command("suspend")
def suspend(subject: SubjectId, *, tenant: OfTenant, as_json: AsJson = False) -> None:
    """Refuse every JWT of a subject until it is resumed.

    It need not have been seen before.
    """

    async def work(pool: Pool) -> SubjectChange:
        name = SubjectName(tenant_id=(await find_tenant(pool, tenant)).id, id=subject)
        return await subjects.suspend(pool, name, now=datetime.now(UTC), trail=trail())

    _report(work, ("is suspended now", "was suspended already"), as_json=as_json)


@app.command("resume")
def resume(subject: SubjectId, *, tenant: OfTenant, as_json: AsJson = False) -> None:
    """Let a suspended subject in again."""

    async def work(pool: Pool) -> SubjectChange:
        name = SubjectName(tenant_id=(await find_tenant(pool, tenant)).id, id=subject)
        return await subjects.resume(pool, name, trail=trail())

    _report(work, ("is resumed", "was not suspended"), as_json=as_json)


@app.command("list")
def list_all(
    *,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only the subjects of this tenant (id or name).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the subjects that were ever suspended.

    The others are not stored.
    """

    async def work(pool: Pool) -> list[Subject]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        return await subjects.list_subjects(pool, tenant_id=tenant_id)

    found = with_pool(work)
    if as_json:
        print_json([_described(subject) for subject in found])
        return
    print_table(
        ("ID", "TENANT", "STATE", "SUSPENDED", "CREATED"),
        [(one.id, one.tenant, _state(one), one.suspended_at, one.created_at) for one in found],
        empty="No subject was ever suspended.",
    )


def _report(work: Callable[[Pool], Awaitable[SubjectChange]], words: tuple[str, str], *, as_json: bool) -> None:
    """Do the work, and say which of the two words is true: the first when something has changed."""
    done = with_pool(work)
    if as_json:
        print_json({"changed": done.changed, **_described(done.subject)})
        return
    found = done.subject
    at = "" if done.changed or found.suspended_at is None else f", at {cell(found.suspended_at)}"
    typer.echo(f"The subject {found.id} (of {found.tenant}) {words[0] if done.changed else words[1]}{at}.")


def _described(subject: Subject) -> dict[str, object]:
    return {
        "id": subject.id,
        "tenant_id": subject.tenant_id,
        "tenant": subject.tenant,
        "state": _state(subject),
        "suspended_at": subject.suspended_at,
        "created_at": subject.created_at,
    }


def _state(subject: Subject) -> str:
    return "active" if subject.suspended_at is None else "suspended"
