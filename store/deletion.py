"""What goes with a tenant that is deleted, and what stays?

Its keys are revoked; its workloads and what was said of its subjects are deleted. The tenant's row stays, marked, and
its keys' rows, the ledger and the audit trail stay as they are. Its name becomes free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from store.audit import AnyConnection, Change
from store.database import Pool, outages_named

_FORESEEN = """
SELECT (SELECT count(*) FROM tenants WHERE id = ANY ($1) AND deleted_at IS NULL) AS tenants,
       (SELECT count(*) FROM api_keys WHERE tenant_id = ANY ($1) AND revoked_at IS NULL) AS keys_revoked,
       (SELECT count(*) FROM workloads WHERE tenant_id = ANY ($1)) AS workloads_deleted,
       (SELECT count(*) FROM subjects WHERE tenant_id = ANY ($1)) AS subjects_deleted"""
_DELETE = """
UPDATE tenants SET deleted_at = $2 WHERE id = ANY ($1) AND deleted_at IS NULL
RETURNING id, name, organization_id, plan"""
_REVOKE_KEYS = """
UPDATE api_keys SET revoked_at = $2, previous_hash = NULL, previous_expires_at = NULL
WHERE tenant_id = ANY ($1) AND revoked_at IS NULL RETURNING id, tenant_id, name"""
_DELETE_WORKLOADS = "DELETE FROM workloads WHERE tenant_id = ANY ($1) RETURNING id, tenant_id, certificate_name"
_DELETE_SUBJECTS = "DELETE FROM subjects WHERE tenant_id = ANY ($1) RETURNING id, tenant_id, suspended_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """How much a deletion changes, or has changed. Keys that were revoked before are not counted."""

    tenants: int
    keys_revoked: int
    workloads_deleted: int
    subjects_deleted: int


async def foreseen(pool: Pool, tenant_ids: Sequence[str]) -> Deletion:
    """What deleting these tenants would do now. Changes nothing."""
    with outages_named():
        row = await pool.fetchrow(_FORESEEN, tenant_ids)
    if row is None:
        raise AssertionError("a SELECT without FROM gives one row")
    return Deletion(**row)


async def delete_tenants(
    connection: AnyConnection, tenant_ids: Sequence[str], *, now: datetime
) -> tuple[Deletion, list[Change]]:
    """Delete the tenants, whose rows the caller has locked, and say what to write into the audit trail."""
    tenants = await connection.fetch(_DELETE, tenant_ids, now)
    # After the tenants: who makes a key locks its tenant first.
    keys = await connection.fetch(_REVOKE_KEYS, tenant_ids, now)
    workloads = await connection.fetch(_DELETE_WORKLOADS, tenant_ids)
    subjects = await connection.fetch(_DELETE_SUBJECTS, tenant_ids)
    deletion = Deletion(
        tenants=len(tenants), keys_revoked=len(keys), workloads_deleted=len(workloads), subjects_deleted=len(subjects)
    )
    changes = [
        *(
            _change("tenant.delete", row["id"], row["id"], before=dict(row), after={"deleted_at": now})
            for row in tenants
        ),
        *(
            _change("key.revoke", row["id"], row["tenant_id"], before={"revoked_at": None}, after={"revoked_at": now})
            for row in keys
        ),
        *(_change("workload.delete", row["id"], row["tenant_id"], before=dict(row)) for row in workloads),
        *(_change("subject.delete", row["id"], row["tenant_id"], before=dict(row)) for row in subjects),
    ]
    return deletion, changes


def _change(
    action: str, row_id: str, tenant_id: str, *, before: dict[str, object], after: dict[str, object] | None = None
) -> Change:
    kind = action.partition(".")[0]
    return Change(action=action, subject=f"{kind}:{row_id}", tenant_id=tenant_id, before=before, after=after)
