"""Which of those on whose behalf requests run may not go on? Asked off the path of any request."""

from collections.abc import Iterable
from datetime import datetime

from extproc.holder import Holder
from store.database import Pool, outages_named, within

# A workload's and a subject's id are principal ids; a subject is only there when something was said of it.
_STANDING = """
SELECT ARRAY(SELECT id FROM api_keys WHERE id = ANY ($1::text[]) AND revoked_at IS NULL AND suspended_at IS NULL
                 AND (expires_at IS NULL OR expires_at > $5)) AS keys,
       ARRAY(SELECT id FROM workloads WHERE id = ANY ($2::text[]) AND suspended_at IS NULL) AS workloads,
       ARRAY(SELECT id FROM subjects WHERE id = ANY ($3::text[]) AND suspended_at IS NOT NULL) AS suspended_subjects,
       ARRAY(SELECT t.id FROM tenants t JOIN organizations o ON o.id = t.organization_id
             WHERE t.id = ANY ($4::text[]) AND t.deleted_at IS NULL AND t.suspended_at IS NULL
                 AND o.deleted_at IS NULL AND o.suspended_at IS NULL) AS tenants"""
_DEADLINE_SECONDS = 1.0
_SUBJECT = "jwt_"


async def fallen(pool: Pool, holders: Iterable[Holder], *, now: datetime) -> set[Holder]:
    """Those of them whose key was revoked or has expired, or who are suspended or deleted at any level.

    Raises `DatabaseOutage`.
    """
    asked = list(holders)
    keys = {holder.key_id for holder in asked if holder.key_id}
    principals = {holder.principal_id for holder in asked if not holder.key_id}
    subjects = {each for each in principals if each.startswith(_SUBJECT)}
    tenants = {holder.tenant_id for holder in asked}
    values = [list(ids) for ids in (keys, principals - subjects, subjects, tenants)]
    with outages_named():
        row = await within(_DEADLINE_SECONDS, pool.fetchrow(_STANDING, *values, now))
    found = {name: frozenset(ids) for name, ids in (row or {}).items()}
    return {holder for holder in asked if not _stands(holder, found)}


def _stands(holder: Holder, found: dict[str, frozenset[str]]) -> bool:
    if holder.tenant_id not in found["tenants"]:
        return False
    if holder.key_id:
        return holder.key_id in found["keys"]
    if holder.principal_id.startswith(_SUBJECT):
        return holder.principal_id not in found["suspended_subjects"]
    return holder.principal_id in found["workloads"]
