"""The audit trail: rows that follow each other without gaps, and no change of the past that does not show."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from authz.scope import Scope
from store import audit_reader
from store.audit import GENESIS, Actor, Change, Trail, append_all
from store.audit_reader import Broken, Fault, Intact, Row, verify
from store.database import DatabaseOutage, Pool, opened

PEPPER = b"p" * 32
NOW = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
ACTOR = Actor(name="cli:root", source="host-1", request_id="req-1")


def change(number: int = 1, **fields: Any) -> Change:
    return Change(action="tenant.suspend", subject=f"tenant:ten_{number}", **fields)


def trail(now: datetime = NOW) -> Trail:
    return Trail(ACTOR, pepper=PEPPER, now=lambda: now)


async def appended(pool: Pool, *changes: Change, now: datetime = NOW) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await trail(now).append(connection, *changes)


async def exported(pool: Pool, since: datetime | None = None) -> list[Row]:
    return [row async for row in audit_reader.export(pool, since=since)]


async def forge(pool: Pool, *statements: str) -> None:
    """What a superuser can do."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("ALTER TABLE audit DISABLE TRIGGER USER")
        for statement in statements:
            await connection.execute(statement)
        await connection.execute("ALTER TABLE audit ENABLE TRIGGER USER")


async def test_an_empty_chain_is_intact(pool: Pool) -> None:
    assert await verify(pool, pepper=PEPPER) == Intact(count=0, head=GENESIS)
    assert await exported(pool) == []


async def test_a_row_says_who_what_where_and_when(pool: Pool) -> None:
    before = {"suspended_at": None, "limits": [{"name": "a", "ceiling": 1}]}
    after = {"suspended_at": NOW, "scopes": frozenset({Scope.ADMIN, Scope.KEYS_READ})}
    await appended(pool, change(tenant_id="ten_1", before=before, after=after))
    [row] = await exported(pool)
    assert (row.number, row.at, row.actor, row.source, row.request_id) == (1, NOW, "cli:root", "host-1", "req-1")
    assert (row.action, row.subject, row.tenant_id) == ("tenant.suspend", "tenant:ten_1", "ten_1")
    assert row.before is not None
    assert row.after is not None
    assert msgspec.json.decode(row.before) == before
    assert msgspec.json.decode(row.after) == {
        "suspended_at": "2026-01-01T12:30:15.123456Z",
        "scopes": ["admin", "keys:read"],
    }
    assert row.previous_hash == GENESIS.hex()
    assert await verify(pool, pepper=PEPPER) == Intact(count=1, head=bytes.fromhex(row.hash))


async def test_each_row_follows_the_one_before(pool: Pool) -> None:
    await appended(pool, change(1), change(2))
    await append_all(pool, [(ACTOR, NOW, change(3)), (Actor(name="system", source="w"), NOW, change(4))], pepper=PEPPER)
    await append_all(pool, [], pepper=PEPPER)
    rows = await exported(pool)
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert [row.previous_hash for row in rows] == [GENESIS.hex(), *(row.hash for row in rows[:-1])]
    assert await verify(pool, pepper=PEPPER) == Intact(count=4, head=bytes.fromhex(rows[-1].hash))


async def test_a_row_leaves_with_its_transaction_and_its_number_is_given_again(pool: Pool) -> None:
    await appended(pool, change(1))

    async def fail() -> None:
        async with pool.acquire() as connection, connection.transaction():
            await trail().append(connection, change(2))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    await appended(pool, change(3))
    assert [(row.number, row.subject) for row in await exported(pool)] == [(1, "tenant:ten_1"), (2, "tenant:ten_3")]
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)


async def test_a_change_outside_of_a_transaction_is_a_bug(pool: Pool) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(RuntimeError, match="transaction"):
            await trail().append(connection, change())


async def test_appends_at_once_keep_the_chain_whole(database: str) -> None:
    async with opened(database, size=8) as pool:
        batches = [[change(10 * at + n) for n in range(3)] for at in range(20)]
        await asyncio.gather(*(appended(pool, *batch) for batch in batches))
        rows = await exported(pool)
        assert [row.number for row in rows] == list(range(1, 61))
        assert {row.subject for row in rows} == {c.subject for batch in batches for c in batch}
        assert isinstance(await verify(pool, pepper=PEPPER), Intact)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**70)
    | st.floats()
    | st.text()
    | st.text(alphabet=["\0", "\\", "u", "0", "\ud800", "\udc00", "é", '"', "\U0001f600"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.none() | st.dictionaries(st.text(max_size=3), JSON, max_size=5)


async def test_whatever_json_is_written_the_chain_is_whole(database: str) -> None:
    """jsonb keeps no order or repetition of keys, writes numbers its own way, and knows no U+0000."""
    async with opened(database) as pool:
        drawn: list[tuple[str, Any, Any]] = []

        @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.tuples(st.text(max_size=5), OBJECTS, OBJECTS))
        def draw(example: tuple[str, Any, Any]) -> None:
            drawn.append(example)

        draw()
        entries = [
            (Actor(name=text, source=text, request_id=text), NOW, change(before=before, after=after, tenant_id=text))
            for text, before, after in drawn
        ]
        await append_all(pool, entries, pepper=PEPPER)
        assert await first_wrong(pool, entries) is None
        rows = await exported(pool)
        assert len(rows) == len(entries)
        assert [row.before is None for row in rows] == [before is None for _, before, _ in drawn]
        for row in rows:  # and what is stored is JSON
            for value in (row.before, row.after):
                assert value is None or isinstance(msgspec.json.decode(value), dict)


async def first_wrong(pool: Pool, entries: Sequence[Any]) -> Any:
    """The entry that breaks the chain."""
    found = await verify(pool, pepper=PEPPER)
    return entries[found.number - 1] if isinstance(found, Broken) else None


async def test_two_names_that_become_one_are_one(pool: Pool) -> None:
    await appended(pool, change(after={"a\0": 1, "a\N{REPLACEMENT CHARACTER}": 2, "n": 1e22, "z": -0.0}))
    [row] = await exported(pool)
    assert row.after is not None
    assert msgspec.json.decode(row.after)["a\N{REPLACEMENT CHARACTER}"] == 2
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)


async def test_another_time_zone_and_a_server_of_another_are_the_same_moment(pool: Pool) -> None:
    await appended(pool, change(), now=NOW.astimezone(timezone(timedelta(hours=-7))))
    [row] = await exported(pool)
    assert row.at == NOW
    async with pool.acquire() as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Kathmandu'")
    await pool.expire_connections()
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)


CHANGED_ROWS = [
    "actor = 'cli:eve'",
    "at = at + interval '1 microsecond'",
    "at = 'infinity'",
    "at = '2026-01-01 12:30:15.123456+00 BC'",
    "at = '4714-11-24 BC'",
    "action = 'key.create'",
    "subject = 'tenant:other'",
    "tenant_id = NULL",
    "source = ''",
    "request_id = NULL",
    "before = NULL",
    "before = 'null'",
    "before = '{\"ceiling\": 1.00}'",
    "after = '{\"ceiling\": 99}'",
    "before = after, after = before",
    "actor = source, source = actor",
    "hash = sha256('forged')",
]
INSERTED = """
INSERT INTO audit (number, at, actor, action, subject, source, previous_hash, hash)
SELECT 4, at, 'cli:eve', action, subject, source, hash, sha256('forged') FROM audit WHERE number = 3"""
FORGED_CHAINS = [
    (["UPDATE audit SET previous_hash = sha256('a') WHERE number = 3"], 3, Fault.OUT_OF_ORDER),
    (["UPDATE audit SET number = 6 WHERE number = 3"], 3, Fault.MISSING),
    (["DELETE FROM audit WHERE number = 1"], 1, Fault.MISSING),
    (["DELETE FROM audit WHERE number = 3"], 3, Fault.MISSING),
    (["DELETE FROM audit WHERE number = 3", "UPDATE audit SET number = 3 WHERE number = 4"], 3, Fault.OUT_OF_ORDER),
    (
        [  # two rows change places
            "UPDATE audit SET number = 9 WHERE number = 3",
            "UPDATE audit SET number = 3 WHERE number = 4",
            "UPDATE audit SET number = 4 WHERE number = 9",
        ],
        3,
        Fault.OUT_OF_ORDER,
    ),
    (
        ["UPDATE audit a SET actor = b.actor, subject = b.subject FROM audit b WHERE (a.number, b.number) = (3, 4)"],
        3,
        Fault.CHANGED,
    ),
    (
        [  # a row is put in
            "UPDATE audit SET number = number + 10 WHERE number > 3",
            INSERTED,
            "UPDATE audit SET number = number - 9 WHERE number > 10",
        ],
        4,
        Fault.CHANGED,
    ),
]


async def five_rows(pool: Pool) -> None:
    changes = [change(n, tenant_id="ten_1", before={"ceiling": 1.0}, after={"ceiling": n}) for n in range(1, 6)]
    await appended(pool, *changes)


@pytest.mark.parametrize("assignment", CHANGED_ROWS)
async def test_a_row_that_was_changed_is_named(pool: Pool, assignment: str) -> None:
    await five_rows(pool)
    await forge(pool, f"UPDATE audit SET {assignment} WHERE number = 3")  # noqa: S608 - made of the list above
    assert await verify(pool, pepper=PEPPER) == Broken(number=3, fault=Fault.CHANGED)


@pytest.mark.parametrize(("forgery", "number", "fault"), FORGED_CHAINS)
async def test_the_first_row_that_is_wrong_is_named(pool: Pool, forgery: list[str], number: int, fault: Fault) -> None:
    await five_rows(pool)
    await forge(pool, *forgery)
    assert await verify(pool, pepper=PEPPER) == Broken(number=number, fault=fault)


async def test_rows_of_another_pepper_are_wrong(pool: Pool) -> None:
    await appended(pool, change())
    assert await verify(pool, pepper=b"q" * 32) == Broken(number=1, fault=Fault.CHANGED)


async def test_a_tail_that_was_cut_off_shows_against_a_head_that_was_noted(pool: Pool) -> None:
    await appended(pool, *(change(n) for n in range(1, 6)))
    whole = await verify(pool, pepper=PEPPER)
    assert isinstance(whole, Intact)
    noted = whole.head
    assert await verify(pool, pepper=PEPPER, noted=GENESIS) == whole
    assert await verify(pool, pepper=PEPPER, noted=noted) == whole
    await appended(pool, change(6))
    assert isinstance(await verify(pool, pepper=PEPPER, noted=noted), Intact)
    await forge(pool, "DELETE FROM audit WHERE number > 3")
    cut = await verify(pool, pepper=PEPPER)
    assert isinstance(cut, Intact)
    assert cut.count == 3
    assert await verify(pool, pepper=PEPPER, noted=noted) == Broken(number=4, fault=Fault.CUT_OFF)
    await appended(pool, change(7), change(8))  # a new tail in place of the old one
    assert await verify(pool, pepper=PEPPER, noted=noted) == Broken(number=6, fault=Fault.CUT_OFF)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET actor = 'eve'", "DELETE FROM audit", "TRUNCATE audit", "DELETE FROM audit WHERE false"],
)
async def test_the_database_refuses_every_change_of_the_past(pool: Pool, statement: str) -> None:
    await appended(pool, change())
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await pool.execute(statement)
    assert isinstance(await verify(pool, pepper=PEPPER), Intact)


async def test_a_long_chain_is_read_piece_by_piece(pool: Pool) -> None:
    await appended(pool, *(change(n) for n in range(1, 1201)))
    assert len(await exported(pool)) == 1200
    found = await verify(pool, pepper=PEPPER)
    assert isinstance(found, Intact)
    assert found.count == 1200


async def test_export_begins_where_it_is_told(pool: Pool) -> None:
    for hours in range(3):
        await appended(pool, change(hours), now=NOW + timedelta(hours=hours))
    assert [row.number for row in await exported(pool, NOW + timedelta(hours=1))] == [2, 3]


async def test_the_newest_come_first_of_all_or_of_one_subject(pool: Pool) -> None:
    await appended(pool, *(change(n % 2) for n in range(6)))
    assert [row.number for row in await audit_reader.latest(pool, limit=3)] == [6, 5, 4]
    assert [row.number for row in await audit_reader.latest(pool, limit=9, subject="tenant:ten_1")] == [6, 4, 2]


@pytest.mark.parametrize("name", ["hash", "previous_hash", "secret", "private_key", "token"])
def test_a_field_that_is_named_like_a_secret_is_not_written(name: str) -> None:
    for before, after in (({name: "hunter2"}, None), (None, {name: "hunter2"})):
        with pytest.raises(ValueError, match=name) as caught:
            change(before=before, after=after)
        assert "hunter2" not in str(caught.value)


async def test_without_a_database_it_is_an_outage() -> None:
    async with opened("postgresql://a:b@127.0.0.1:1/none") as pool:
        for work in (
            append_all(pool, [(ACTOR, NOW, change())], pepper=PEPPER),
            verify(pool, pepper=PEPPER),
            exported(pool),
            audit_reader.latest(pool, limit=1),
        ):
            with pytest.raises(DatabaseOutage):
                await work
