"""API keys in Postgres: how they are made, changed, suspended, rotated and revoked, and what of it is audited."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from authz.api_key import ApiKey, generate, keyed_hash
from authz.principal import Handle, Principal, PrincipalKind
from quota.limit import requests_per_minute, tokens_per_day
from store import api_keys
from store.api_keys import KeyChanges, KeyState, NewKey, NewSecret, StoredKey
from store.database import DatabaseOutage, Pool
from store.directory import PostgresDirectory
from store.field_error import FieldError
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant, audited

HOUR = timedelta(hours=1)
NARROW: dict[str, Any] = {
    "scopes": ("usage:read", "inference:text"),
    "roles": ("viewer",),
    "models": ("gpt-*", "claude"),
    "networks": ("10.0.0.0/8", "192.0.2.7"),
    "limits": (requests_per_minute(5), tokens_per_day(1_000)),
}


async def made(pool: Pool, **changes: Any) -> tuple[ApiKey, StoredKey]:
    tenant = await add_tenant(pool)
    key = generate()
    new = NewKey(**{"key": key, "tenant_id": tenant, "name": "laptop", **changes})
    return key, await api_keys.create(pool, new, pepper=PEPPER, trail=TRAIL)


async def principal(pool: Pool, key_id: str) -> Principal:
    found = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key_id))
    assert found is not None
    return found


async def rotated(pool: Pool, key_id: str, overlap: timedelta, *, after: timedelta = HOUR) -> api_keys.Rotation:
    new = NewSecret(key=generate(public_id=key_id), overlap=overlap)
    return await api_keys.rotate(pool, new, pepper=PEPPER, now=NOON + after, trail=TRAIL)


async def refused(asked: Awaitable[object], field: str, *words: str) -> None:
    with pytest.raises(FieldError) as raised:
        await asked
    assert raised.value.field == field
    for word in words:
        assert word in raised.value.reason


async def test_a_key_is_stored_as_id_and_keyed_hash_only(pool: Pool) -> None:
    key, stored = await made(pool, expires_at=NOON)
    assert (stored.id, stored.tag, stored.expires_at) == (key.id, "live", NOON)
    assert await pool.fetchval("SELECT hash FROM api_keys") == keyed_hash(key.text, PEPPER)
    everything = str(await pool.fetch("SELECT * FROM api_keys")) + str(await pool.fetch("SELECT * FROM audit"))
    for secret in (key.text, key.text.split("_")[3]):
        assert secret not in everything


async def test_what_a_key_may_do_is_stored_in_one_form_and_found(pool: Pool) -> None:
    _, stored = await made(pool, **NARROW)
    assert stored.scopes == ("inference:text", "usage:read")
    assert stored.networks == ("10.0.0.0/8", "192.0.2.7/32")
    assert (stored.roles, stored.models, stored.limits) == (("viewer",), ("claude", "gpt-*"), NARROW["limits"])
    assert await api_keys.find(pool, stored.id) == stored
    assert await api_keys.list_keys(pool) == [stored]
    found = await principal(pool, stored.id)
    assert (found.models, found.networks, found.limits) == (stored.models, stored.networks, stored.limits)
    assert found.scopes == {"inference:text", "models:read", "requests:read", "usage:read"}


@pytest.mark.parametrize(
    ("asked", "roles"),
    [({}, ("inference",)), ({"scopes": ("admin",)}, ()), ({"roles": ("viewer", "viewer")}, ("viewer",))],
)
async def test_a_key_without_scopes_and_roles_is_for_inference(
    pool: Pool, asked: dict[str, Any], roles: tuple[str, ...]
) -> None:
    _, stored = await made(pool, **asked)
    assert stored.roles == roles


async def test_keys_are_listed_by_tenant(pool: Pool) -> None:
    _, stored = await made(pool)
    await add_tenant(pool, "ten_b", name="other")
    assert await api_keys.list_keys(pool, tenant_id="ten_a") == [stored]
    assert await api_keys.list_keys(pool, tenant_id="ten_b") == []


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        ({"tenant_id": "ten_none"}, "tenant", ["ten_none"]),
        ({"tenant_id": "ten_gone"}, "tenant", ["ten_gone"]),
        ({"name": " laptop"}, "name", []),
        ({"scopes": ("inference:video",)}, "scopes", ["inference:video", "inference:text"]),
        ({"roles": ("viewer", "nobody")}, "roles", ["nobody", "admin, inference, key-manager"]),
        ({"models": ("gpt *",)}, "models", ["gpt *"]),
        ({"networks": ("10.0.0.1/8",)}, "networks", ["10.0.0.0/8"]),
        ({"limits": (requests_per_minute(-1),)}, "limits", ["requests_per_minute"]),
        ({"limits": (requests_per_minute(1), requests_per_minute(2))}, "limits", ["requests_per_minute"]),
        ({"scopes": ("admin",) * 101}, "scopes", ["101", "100"]),
        ({"models": tuple(f"m{n}" for n in range(101))}, "models", ["101"]),
    ],
    ids=str,
)
async def test_what_a_key_cannot_be_is_named_and_nothing_is_left(
    pool: Pool, asked: dict[str, Any], field: str, words: list[str]
) -> None:
    await add_tenant(pool, "ten_gone", name="gone", deleted=True)
    await refused(made(pool, **asked), field, *words)
    assert await api_keys.list_keys(pool) == []
    assert await audited(pool) == []


async def test_a_key_is_made_once(pool: Pool) -> None:
    key, stored = await made(pool)
    again = NewKey(key=key, tenant_id=stored.tenant_id, name="n")
    await refused(api_keys.create(pool, again, pepper=PEPPER, trail=TRAIL), "key", "already")
    assert len(await audited(pool)) == 1


async def test_a_new_key_is_audited_whole(pool: Pool) -> None:
    key, _ = await made(pool, **NARROW, expires_at=NOON)
    [row] = await audited(pool)
    assert (row["actor"], row["action"], row["subject"]) == ("cli:tester", "key.create", f"key:{key.id}")
    assert (row["tenant_id"], row["before"]) == ("ten_a", None)
    assert row["after"]["scopes"] == ["inference:text", "usage:read"]
    assert row["after"]["limits"][0]["ceiling"] == 5
    assert row["after"]["expires_at"] == "2026-01-01T12:00:00Z"


@pytest.mark.parametrize(
    "asked",
    [
        *({name: value} for name, value in NARROW.items()),
        {"name": "desktop"},
        {"expires_at": NOON + HOUR},
        {"never_expires": True},
        {"roles": ()},
        {**NARROW, "name": "desktop"},
    ],
    ids=str,
)
async def test_a_change_changes_what_it_names_and_is_audited_once(pool: Pool, asked: dict[str, Any]) -> None:
    _, before = await made(pool, expires_at=NOON)
    done = await api_keys.update(pool, before.id, KeyChanges(**asked), trail=TRAIL)
    names = {"expires_at" if name == "never_expires" else name for name in asked}
    assert {name for name in names if getattr(done.key, name) != getattr(before, name)} == names
    assert replace(done.key, **{name: getattr(before, name) for name in names}) == before
    assert await api_keys.find(pool, before.id) == done.key
    again = await api_keys.update(pool, before.id, KeyChanges(**asked), trail=TRAIL)
    assert (done.changed, again.changed, again.key) == (True, False, done.key)
    _, row = await audited(pool)
    assert row["action"] == "key.update"
    assert set(row["before"]) == set(row["after"]) == names


async def test_no_change_writes_nothing(pool: Pool) -> None:
    _, before = await made(pool, **NARROW)
    version = await pool.fetchval("SELECT version FROM api_keys")
    for changes in (KeyChanges(), KeyChanges(name="laptop", **NARROW)):
        assert not (await api_keys.update(pool, before.id, changes, trail=TRAIL)).changed
    assert not (await api_keys.resume(pool, before.id, trail=TRAIL)).changed
    assert await pool.fetchval("SELECT version FROM api_keys") == version
    assert len(await audited(pool)) == 1


async def test_a_role_that_is_gone_may_stay_but_not_come(pool: Pool) -> None:
    _, before = await made(pool, roles=("viewer",))
    await pool.execute("DELETE FROM roles WHERE name = 'viewer'")
    done = await api_keys.update(pool, before.id, KeyChanges(roles=("viewer", "inference")), trail=TRAIL)
    assert done.key.roles == ("inference", "viewer")
    await api_keys.update(pool, before.id, KeyChanges(roles=()), trail=TRAIL)
    await refused(api_keys.update(pool, before.id, KeyChanges(roles=("viewer",)), trail=TRAIL), "roles", "viewer")


async def test_changes_at_the_same_time_are_all_made(pool: Pool) -> None:
    _, key = await made(pool)
    changes = [KeyChanges(**{name: value}) for name, value in NARROW.items()]
    await asyncio.gather(*(api_keys.update(pool, key.id, change, trail=TRAIL) for change in changes))
    found = await api_keys.find(pool, key.id)
    assert (found.scopes, found.roles, len(found.limits)) == (("inference:text", "usage:read"), ("viewer",), 2)
    assert (found.models, found.networks) == (("claude", "gpt-*"), ("10.0.0.0/8", "192.0.2.7/32"))
    assert len(await audited(pool)) == 1 + len(changes)


async def test_a_suspended_key_keeps_its_first_time_and_is_resumed(pool: Pool) -> None:
    _, key = await made(pool)
    first = await api_keys.suspend(pool, key.id, now=NOON, trail=TRAIL)
    again = await api_keys.suspend(pool, key.id, now=NOON + HOUR, trail=TRAIL)
    assert (first.changed, again.changed) == (True, False)
    assert first.key.suspended_at == again.key.suspended_at == NOON
    assert first.key.state(NOON) is KeyState.SUSPENDED
    assert (await principal(pool, key.id)).suspended
    assert (await api_keys.resume(pool, key.id, trail=TRAIL)).key == key
    assert not (await principal(pool, key.id)).suspended
    assert [row["action"] for row in await audited(pool)] == ["key.create", "key.suspend", "key.resume"]


async def test_a_rotated_key_has_a_new_secret_and_the_former_until_the_overlap_ends(pool: Pool) -> None:
    former, before = await made(pool)
    new = NewSecret(key=generate(public_id=former.id), overlap=HOUR)
    done = await api_keys.rotate(pool, new, pepper=PEPPER, now=NOON, trail=TRAIL)
    assert done.cut_short is None
    assert (done.key.id, done.key.rotated_at, done.key.previous_expires_at) == (before.id, NOON, NOON + HOUR)
    assert await api_keys.find(pool, former.id) == done.key
    secrets = (await principal(pool, former.id)).secrets
    assert [(secret.hash, secret.expires_at) for secret in secrets] == [
        (keyed_hash(new.key.text, PEPPER), None),
        (keyed_hash(former.text, PEPPER), NOON + HOUR),
    ]


async def test_without_an_overlap_the_former_secret_ends_at_once(pool: Pool) -> None:
    former, _ = await made(pool)
    done = await rotated(pool, former.id, timedelta(0))
    assert (done.cut_short, done.key.previous_expires_at) == (None, None)
    [secret] = (await principal(pool, former.id)).secrets
    assert secret.hash != keyed_hash(former.text, PEPPER)


@pytest.mark.parametrize(
    ("later", "cut_short"), [(2 * HOUR, NOON + 25 * HOUR), (25 * HOUR, None), (26 * HOUR, None)], ids=str
)
@pytest.mark.parametrize("overlap", [HOUR, timedelta(0)], ids=str)
async def test_a_rotation_ends_the_overlap_of_the_one_before_and_says_so(
    pool: Pool, overlap: timedelta, later: timedelta, cut_short: object
) -> None:
    first, _ = await made(pool)
    await rotated(pool, first.id, 24 * HOUR)
    second = await pool.fetchval("SELECT hash FROM api_keys")
    done = await rotated(pool, first.id, overlap, after=later)
    assert done.cut_short == cut_short
    hashes = [secret.hash for secret in (await principal(pool, first.id)).secrets]
    assert keyed_hash(first.text, PEPPER) not in hashes
    assert hashes[1:] == ([second] if overlap else [])


async def test_of_two_rotations_at_once_the_later_keeps_the_secret_of_the_earlier(pool: Pool) -> None:
    key, _ = await made(pool)
    done = await asyncio.gather(*(rotated(pool, key.id, HOUR) for _ in range(2)))
    assert sorted(rotation.cut_short is None for rotation in done) == [False, True]
    hashes = [secret.hash for secret in (await principal(pool, key.id)).secrets]
    assert len(hashes) == 2
    assert keyed_hash(key.text, PEPPER) not in hashes


async def test_a_rotation_is_audited_without_a_secret(pool: Pool) -> None:
    key, _ = await made(pool)
    await rotated(pool, key.id, HOUR, after=timedelta(0))
    _, row = await audited(pool)
    assert row["action"] == "key.rotate"
    assert row["before"] == {"rotated_at": None, "previous_expires_at": None}
    assert row["after"] == {"rotated_at": "2026-01-01T12:00:00Z", "previous_expires_at": "2026-01-01T13:00:00Z"}


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), api_keys.LONGEST_OVERLAP + timedelta(seconds=1)], ids=str)
async def test_an_overlap_is_neither_negative_nor_endless(pool: Pool, overlap: timedelta) -> None:
    key, _ = await made(pool)
    await refused(rotated(pool, key.id, overlap), "overlap", "30 days")


async def test_a_rotated_key_keeps_its_tag(pool: Pool) -> None:
    key, _ = await made(pool)
    new = NewSecret(key=generate("test", public_id=key.id), overlap=HOUR)
    await refused(api_keys.rotate(pool, new, pepper=PEPPER, now=NOON, trail=TRAIL), "tag", "live", "test")


async def test_revoking_ends_all_secrets_and_again_keeps_the_first_time(pool: Pool) -> None:
    key, _ = await made(pool)
    await rotated(pool, key.id, 24 * HOUR)
    first = await api_keys.revoke(pool, key.id, now=NOON, trail=TRAIL)
    again = await api_keys.revoke(pool, key.id, now=NOON + HOUR, trail=TRAIL)
    assert (first.changed, again.changed) == (True, False)
    assert first.key == again.key == await api_keys.find(pool, key.id)
    assert (first.key.revoked_at, first.key.previous_expires_at) == (NOON, None)
    found = await principal(pool, key.id)
    assert (found.revoked_at, len(found.secrets)) == (NOON, 1)
    assert [row["action"] for row in await audited(pool)] == ["key.create", "key.rotate", "key.revoke"]


async def test_a_revoked_key_stays_as_it_is(pool: Pool) -> None:
    _, key = await made(pool)
    await api_keys.revoke(pool, key.id, now=NOON, trail=TRAIL)
    for asked in (
        api_keys.update(pool, key.id, KeyChanges(name="n"), trail=TRAIL),
        api_keys.suspend(pool, key.id, now=NOON, trail=TRAIL),
        api_keys.resume(pool, key.id, trail=TRAIL),
        rotated(pool, key.id, HOUR),
    ):
        await refused(asked, "key", key.id, "revoked")
    assert len(await audited(pool)) == 2


async def test_an_unknown_key_is_named(pool: Pool) -> None:
    for asked in (
        api_keys.find(pool, "none"),
        api_keys.update(pool, "none", KeyChanges(name="n"), trail=TRAIL),
        api_keys.suspend(pool, "none", now=NOON, trail=TRAIL),
        api_keys.resume(pool, "none", trail=TRAIL),
        api_keys.revoke(pool, "none", now=NOON, trail=TRAIL),
    ):
        await refused(asked, "key", "none")
    await refused(rotated(pool, "x" * 12, HOUR), "key", "x" * 12)


async def test_the_state_of_a_key(pool: Pool) -> None:
    _, stored = await made(pool, expires_at=NOON)
    assert stored.state(NOON - HOUR) is KeyState.ACTIVE
    assert stored.state(NOON) is KeyState.EXPIRED
    suspended = (await api_keys.suspend(pool, stored.id, now=NOON, trail=TRAIL)).key
    assert [suspended.state(NOON - HOUR), suspended.state(NOON)] == [KeyState.SUSPENDED, KeyState.EXPIRED]
    revoked = (await api_keys.revoke(pool, stored.id, now=NOON, trail=TRAIL)).key
    assert revoked.state(NOON - HOUR) is KeyState.REVOKED


async def test_a_change_that_cannot_be_audited_is_not_made(pool: Pool) -> None:
    _, before = await made(pool)
    await pool.execute("ALTER TABLE audit ADD CONSTRAINT no_room CHECK (action <> 'key.revoke')")
    with pytest.raises(DatabaseOutage, match="no_room"):
        await api_keys.revoke(pool, before.id, now=NOON, trail=TRAIL)
    assert await api_keys.find(pool, before.id) == before
