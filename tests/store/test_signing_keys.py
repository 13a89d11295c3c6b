"""Signing keys in Postgres: made once, encrypted, rolled over without a gap, and every change in the audit trail."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from authz.key_ring import PUBLISH_AFTER, PUBLISH_AHEAD
from store import audit_reader, signing_keys
from store.audit import Actor, Trail
from store.audit_reader import Intact, verify
from store.database import DatabaseOutage, Pool, connect, opened
from store.field_error import FieldError
from store.signing_keys import SigningKeyState, ensure, list_keys, load, rotate

PEPPER = b"p" * 32
OTHER_PEPPER = b"q" * 32
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def trail(pepper: bytes = PEPPER) -> Trail:
    return Trail(Actor(name="cli:root", source="host-1"), pepper=pepper, now=lambda: NOW)


async def audited(pool: Pool) -> list[tuple[str, str, str]]:
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)
    return [(row.actor, row.action, row.subject) async for row in audit_reader.export(pool)]


async def test_the_first_key_is_made_once_and_signs_at_once(database: str) -> None:
    async with opened(database, size=6) as pool:
        await asyncio.gather(*(ensure(pool, PEPPER, NOW) for _ in range(6)))
        await ensure(pool, PEPPER, NOW + timedelta(days=900))
        ring = await load(pool, PEPPER, NOW)
        [key] = ring.keys
        assert ring.signer(NOW) == key
        assert await audited(pool) == [("system", "signing_key.create", f"signing_key:{key.id}")]


async def test_a_key_comes_back_as_it_was(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    made = await rotate(pool, PEPPER, trail(), NOW)
    ring = await load(pool, PEPPER, NOW)
    found = ring.find(made.id, NOW)
    assert found is not None
    assert found.private.private_bytes_raw() == made.private.private_bytes_raw()
    assert (found.jwk, found.active_from, found.created_at) == (made.jwk, made.active_from, made.created_at)


async def test_the_database_does_not_hold_the_private_key(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    [key] = (await load(pool, PEPPER, NOW)).keys
    secret = key.private.private_bytes_raw()
    tables = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert {"signing_keys", "audit"} <= {table["tablename"] for table in tables}
    for table in tables:
        for row in await pool.fetch(f"SELECT * FROM {table['tablename']}"):  # noqa: S608 - a table of our own
            for value in row.values():
                data = value if isinstance(value, bytes) else str(value).encode()
                assert secret not in data
                assert secret.hex().encode() not in data
    stored = await pool.fetchrow("SELECT public_key, private_key FROM signing_keys")
    assert stored is not None
    assert msgspec.json.decode(stored["public_key"]) == key.jwk
    assert len(stored["private_key"]) == 12 + 32 + 16  # nonce, key, tag


async def test_another_pepper_opens_nothing_and_says_so(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    for work in (load(pool, OTHER_PEPPER, NOW), rotate(pool, OTHER_PEPPER, trail(OTHER_PEPPER), NOW)):
        with pytest.raises(FieldError, match=r"pepper: the signing key .* rotate --now"):
            await work
    assert len((await load(pool, PEPPER, NOW)).keys) == 1
    await rotate(pool, OTHER_PEPPER, trail(OTHER_PEPPER), NOW, at_once=True)
    [key] = (await load(pool, OTHER_PEPPER, NOW)).keys
    assert key.active_from == NOW


@pytest.mark.parametrize("private_key", ["'\\x'::bytea", "(SELECT private_key FROM signing_keys WHERE id <> s.id)"])
async def test_a_private_key_that_is_not_the_rows_own_is_not_taken(pool: Pool, private_key: str) -> None:
    await ensure(pool, PEPPER, NOW)
    await rotate(pool, PEPPER, trail(), NOW)
    await pool.execute(f"UPDATE signing_keys s SET private_key = {private_key}")  # noqa: S608 - made of the list above
    with pytest.raises(FieldError):
        await load(pool, PEPPER, NOW)


async def test_the_next_key_is_published_before_it_signs_and_the_former_one_after(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW - timedelta(days=1))
    [former] = (await load(pool, PEPPER, NOW)).keys
    made = await rotate(pool, PEPPER, trail(), NOW)
    ring = await load(pool, PEPPER, NOW)
    takes_over, ends = NOW + PUBLISH_AHEAD, NOW + PUBLISH_AHEAD + PUBLISH_AFTER
    signers = [ring.signer(at) for at in (NOW, takes_over - SECOND, takes_over, ends)]
    assert [key and key.id for key in signers] == [former.id, former.id, made.id, made.id]
    published = [{key.id for key in ring.published(at)} for at in (NOW, ends - SECOND, ends)]
    assert published == [{former.id, made.id}, {former.id, made.id}, {made.id}]
    assert [key.id for key in (await load(pool, PEPPER, ends)).keys] == [made.id]
    assert await audited(pool) == [
        ("system", "signing_key.create", f"signing_key:{former.id}"),
        ("cli:root", "signing_key.create", f"signing_key:{made.id}"),
        ("cli:root", "signing_key.retire", f"signing_key:{former.id}"),
    ]


async def test_the_end_of_a_key_is_never_put_off(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    [first] = (await load(pool, PEPPER, NOW)).keys
    second = await rotate(pool, PEPPER, trail(), NOW)
    third = await rotate(pool, PEPPER, trail(), NOW + 60 * SECOND)
    ends = {key.id: key.retired_at for key in (await load(pool, PEPPER, NOW)).keys}
    assert ends == {first.id: NOW + 1200 * SECOND, second.id: NOW + 1260 * SECOND, third.id: None}


async def test_a_stolen_key_ends_at_once(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    await rotate(pool, PEPPER, trail(), NOW)
    made = await rotate(pool, PEPPER, trail(), NOW + SECOND, at_once=True)
    ring = await load(pool, PEPPER, NOW + SECOND)
    assert [key.id for key in ring.keys] == [made.id]
    assert ring.signer(NOW + SECOND) is not None


async def test_without_a_key_that_signs_the_next_one_must_sign_at_once(pool: Pool) -> None:
    with pytest.raises(FieldError, match="no key signs"):
        await rotate(pool, PEPPER, trail(), NOW)
    await rotate(pool, PEPPER, trail(), NOW, at_once=True)
    assert (await load(pool, PEPPER, NOW)).signer(NOW) is not None


async def test_rotations_at_once_leave_one_key_that_does_not_end(database: str) -> None:
    async with opened(database, size=4) as pool:
        await ensure(pool, PEPPER, NOW)
        await asyncio.gather(*(rotate(pool, PEPPER, trail(), NOW) for _ in range(4)))
        ring = await load(pool, PEPPER, NOW)
        assert [key.retired_at is None for key in ring.keys].count(True) == 1
        assert isinstance(await verify(pool, pepper=PEPPER), Intact)


async def test_the_states_of_the_keys(pool: Pool) -> None:
    assert await list_keys(pool, NOW) == []
    await ensure(pool, PEPPER, NOW)
    await rotate(pool, PEPPER, trail(), NOW)
    states = [
        [key.state for key in await list_keys(pool, at)]
        for at in (NOW, NOW + PUBLISH_AHEAD, NOW + PUBLISH_AHEAD + PUBLISH_AFTER)
    ]
    assert states == [
        [SigningKeyState.NEXT, SigningKeyState.SIGNING],
        [SigningKeyState.SIGNING, SigningKeyState.PUBLISHED],
        [SigningKeyState.SIGNING, SigningKeyState.RETIRED],
    ]


async def test_a_new_key_is_announced(pool: Pool, database: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def hear(_connection: object, _process: int, _channel: str, payload: object) -> None:
        heard.put_nowait(str(payload))

    listener = await connect(database)
    try:
        await listener.add_listener("identity_changed", hear)
        await ensure(pool, PEPPER, NOW)
        [key] = (await load(pool, PEPPER, NOW)).keys
        async with asyncio.timeout(10):
            payload = await heard.get()
        assert payload.startswith(f"signing_keys:{key.id}:")
    finally:
        await listener.close()


async def test_without_a_database_it_is_an_outage() -> None:
    async with opened("postgresql://a:b@127.0.0.1:1/none") as pool:
        for work in (ensure(pool, PEPPER, NOW), load(pool, PEPPER, NOW), rotate(pool, PEPPER, trail(), NOW)):
            with pytest.raises(DatabaseOutage):
                await work


async def test_a_failed_audit_row_makes_no_key(pool: Pool) -> None:
    await ensure(pool, PEPPER, NOW)
    await pool.execute("ALTER TABLE audit ADD CHECK (action <> 'signing_key.retire') NOT VALID")
    with pytest.raises(DatabaseOutage) as caught:
        await rotate(pool, PEPPER, trail(), NOW)
    assert isinstance(caught.value.__cause__, asyncpg.CheckViolationError)
    assert len(await signing_keys.list_keys(pool, NOW)) == 1
