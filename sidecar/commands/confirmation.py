"""Is a person sure? What a deletion does is said before it is done, and asked about, unless `--yes` is given."""

import sys
from typing import Annotated

import typer

from store.deletion import Deletion
from store.field_error import FieldError

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is nobody to ask.")]
STAYS = "What was used stays in the ledger under the tenant's id, and its changes stay in the audit trail."


def confirm(consequences: str, *, yes: bool) -> None:
    """Say what will happen and ask; the program ends when the answer is no. Raises `FieldError` without a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise FieldError("--yes", f"is needed here, where nobody can be asked. {consequences}")
    typer.echo(consequences, err=True)
    typer.confirm("Do it?", abort=True, err=True)


def foretold(subject: str, deletion: Deletion) -> str:
    """What deleting the subject will do to keys and history."""
    return (
        f"Deleting {subject} cannot be undone. It revokes {counted(deletion.keys_revoked, 'key')} and deletes "
        f"{counted(deletion.workloads_deleted, 'workload')} and what was said of "
        f"{counted(deletion.subjects_deleted, 'subject')}. {STAYS}"
    )


def told(subject: str, deletion: Deletion) -> str:
    """What deleting the subject has done to keys and history."""
    return (
        f"Deleted: {subject}. Revoked: {counted(deletion.keys_revoked, 'key')}. Deleted with it: "
        f"{counted(deletion.workloads_deleted, 'workload')} and what was said of "
        f"{counted(deletion.subjects_deleted, 'subject')}. {STAYS}"
    )


def counted(number: int, noun: str) -> str:
    """Write `1 key`, `2,000 keys`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
