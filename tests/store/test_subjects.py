"""Subjects of JWTs: suspended by their id and tenant, resumed, and audited."""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

import pytest

from authz.principal import Handle, PrincipalKind
from store import subjects
from store.database import Pool
from store.directory import PostgresDirectory
from store.field_error import FieldError
from store.subjects import SubjectName
from tests.support.identity_rows import NOON, TRAIL, add_tenant, audited

NAME = SubjectName(tenant_id="ten_a", id="jwt_aaaaaaaaaaaaaaaaaaaa")
LATER = NOON + timedelta(hours=1)


async def suspended(pool: Pool) -> bool:
    found = await PostgresDirectory(pool).find(Handle(PrincipalKind.JWT, NAME.id, NAME.tenant_id))
    assert found is not None
    return found.suspended


async def refused(asked: Awaitable[object], field: str, *words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await asked
    assert raised.value.field == field
    for word in words:
        assert word in raised.value.reason


async def test_a_subject_that_nobody_has_seen_is_suspended_and_resumed(pool: Pool) -> None:
    await add_tenant(pool)
    assert not await suspended(pool)
    done = await subjects.suspend(pool, NAME, now=NOON, trail=TRAIL)
    assert (done.changed, done.subject.suspended_at, done.subject.tenant) == (True, NOON, "search")
    assert await suspended(pool)
    assert await subjects.list_subjects(pool) == [done.subject]
    done = await subjects.resume(pool, NAME, trail=TRAIL)
    assert (done.changed, done.subject.suspended_at) == (True, None)
    assert not await suspended(pool)
    assert [(row["action"], row["subject"], row["tenant_id"]) for row in await audited(pool)] == [
        ("subject.suspend", "subject:jwt_aaaaaaaaaaaaaaaaaaaa", "ten_a"),
        ("subject.resume", "subject:jwt_aaaaaaaaaaaaaaaaaaaa", "ten_a"),
    ]
    row, _ = await audited(pool)
    assert (row["before"], row["after"]) == ({"suspended_at": None}, {"suspended_at": "2026-01-01T12:00:00Z"})


async def test_again_changes_nothing(pool: Pool) -> None:
    await add_tenant(pool)
    await subjects.suspend(pool, NAME, now=NOON, trail=TRAIL)
    again = await subjects.suspend(pool, NAME, now=LATER, trail=TRAIL)
    assert (again.changed, again.subject.suspended_at) == (False, NOON)
    await subjects.resume(pool, NAME, trail=TRAIL)
    assert not (await subjects.resume(pool, NAME, trail=TRAIL)).changed
    assert len(await audited(pool)) == 2
    assert (await subjects.suspend(pool, NAME, now=LATER, trail=TRAIL)).subject.suspended_at == LATER


async def test_of_many_suspensions_at_once_one_is_made(pool: Pool) -> None:
    await add_tenant(pool)
    done = await asyncio.gather(*(subjects.suspend(pool, NAME, now=NOON, trail=TRAIL) for _ in range(8)))
    assert sum(change.changed for change in done) == 1
    assert len(await audited(pool)) == 1


async def test_subjects_are_listed_by_tenant(pool: Pool) -> None:
    await add_tenant(pool)
    await add_tenant(pool, "ten_b", name="other")
    done = await subjects.suspend(pool, NAME, now=NOON, trail=TRAIL)
    assert await subjects.list_subjects(pool, tenant_id="ten_a") == [done.subject]
    assert await subjects.list_subjects(pool, tenant_id="ten_b") == []


async def test_a_subject_of_another_tenant_is_not_known(pool: Pool) -> None:
    await add_tenant(pool)
    await add_tenant(pool, "ten_b", name="other")
    await subjects.suspend(pool, NAME, now=NOON, trail=TRAIL)
    elsewhere = SubjectName(tenant_id="ten_b", id=NAME.id)
    await refused(
        subjects.suspend(pool, elsewhere, now=NOON, trail=TRAIL), "subject", "jwt_aaaaaaaaaaaaaaaaaaaa", "ten_b"
    )
    await refused(subjects.resume(pool, elsewhere, trail=TRAIL), "subject", "jwt_aaaaaaaaaaaaaaaaaaaa", "ten_b")
    assert await suspended(pool)


@pytest.mark.parametrize("name", ["", "a", "jwt_", "key_a", "jwt_a b", "jwt_a\n", "jwt_é", "jwt_" + "a" * 201])
async def test_what_is_no_subject(pool: Pool, name: str) -> None:
    await add_tenant(pool)
    await refused(subjects.suspend(pool, SubjectName(tenant_id="ten_a", id=name), now=NOON, trail=TRAIL), "subject")
    assert await audited(pool) == []


async def test_what_does_not_exist_is_named(pool: Pool) -> None:
    await add_tenant(pool, "ten_gone", deleted=True)
    for tenant in ("ten_none", "ten_gone"):
        name = SubjectName(tenant_id=tenant, id="jwt_aaaaaaaaaaaaaaaaaaaa")
        await refused(subjects.suspend(pool, name, now=NOON, trail=TRAIL), "tenant", tenant)
    await refused(subjects.resume(pool, NAME, trail=TRAIL), "subject", "jwt_aaaaaaaaaaaaaaaaaaaa")
