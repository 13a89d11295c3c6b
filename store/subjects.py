"""Which subjects of JWTs are suspended? A subject is whom an identity provider vouches for; nothing else of it is kept.

Every change and its row in the audit trail are one transaction; a change that changes nothing leaves no row.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime

from store.audit import Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.field_error import FieldError

_ID = re.compile(r"jwt_[0-9a-f]{20}")  # authz.issuer.principal_id
_SELECT = """
SELECT s.id, s.tenant_id, t.name AS tenant, s.suspended_at, s.created_at
FROM subjects s JOIN tenants t ON t.id = s.tenant_id"""
_LOCK = f"{_SELECT} WHERE s.id = $1 FOR UPDATE OF s"
_LOCK_TENANT = "SELECT id FROM tenants WHERE id = $1 AND deleted_at IS NULL FOR SHARE"
_ENSURE = "INSERT INTO subjects (id, tenant_id) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING"
_UPDATE = "UPDATE subjects SET suspended_at = $2 WHERE id = $1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectName:
    """Which subject is meant: its principal id, `jwt_...`, and the tenant it acts for."""

    tenant_id: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What an administrator has said of a subject."""

    id: str
    tenant_id: str
    tenant: str
    suspended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SubjectChange:
    """The subject afterwards. `changed` is false when it was so already."""

    subject: Subject
    changed: bool


async def suspend(pool: Pool, name: SubjectName, *, now: datetime, trail: Trail) -> SubjectChange:
    """Refuse the subject, seen before or not, until it is resumed.

    Raises `FieldError` when it cannot be one, its tenant does not exist, or it is another tenant's.
    """
    if not _ID.fullmatch(name.id):
        raise FieldError("subject", f"{name.id[:80]!r} is no id like jwt_ and 20 hexadecimal digits, as in the ledger")
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(_LOCK_TENANT, name.tenant_id) is None:
                raise FieldError("tenant", f"there is no tenant {name.tenant_id!r}")
            await connection.execute(_ENSURE, name.id, name.tenant_id)
            return await _set(connection, await _find(connection, name), now, trail)


async def resume(pool: Pool, name: SubjectName, *, trail: Trail) -> SubjectChange:
    """Let the subject in again; raises `FieldError` when nobody has ever suspended it."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            return await _set(connection, await _find(connection, name), None, trail)


async def list_subjects(pool: Pool, *, tenant_id: str | None = None) -> list[Subject]:
    """Return every subject that was ever suspended, or those of one tenant, oldest first."""
    with outages_named():
        if tenant_id is None:
            rows = await pool.fetch(f"{_SELECT} ORDER BY s.created_at, s.id")
        else:
            rows = await pool.fetch(f"{_SELECT} WHERE s.tenant_id = $1 ORDER BY s.created_at, s.id", tenant_id)
    return [Subject(**row) for row in rows]


async def _find(connection: PooledConnection, name: SubjectName) -> Subject:
    row = await connection.fetchrow(_LOCK, name.id)
    # One tenant must not learn of the subjects of another.
    if row is None or row["tenant_id"] != name.tenant_id:
        raise FieldError("subject", f"{name.id[:80]!r} is not known as a subject of {name.tenant_id}")
    return Subject(**row)


async def _set(
    connection: PooledConnection, before: Subject, suspended_at: datetime | None, trail: Trail
) -> SubjectChange:
    if (before.suspended_at is None) is (suspended_at is None):
        return SubjectChange(before, changed=False)
    await connection.execute(_UPDATE, before.id, suspended_at)
    after = replace(before, suspended_at=suspended_at)
    change = Change(
        action="subject.resume" if suspended_at is None else "subject.suspend",
        subject=f"subject:{after.id}",
        tenant_id=after.tenant_id,
        before={"suspended_at": before.suspended_at},
        after={"suspended_at": after.suspended_at},
    )
    await trail.append(connection, change)
    return SubjectChange(after, changed=True)
