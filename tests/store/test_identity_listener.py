"""The listener: hears every change and of which row it is, and says so after each time it could not hear."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from store.database import Pool, opened
from store.identity_listener import IdentityListener

DEADLINE = 10
KILL_LISTENERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"""

SOME_OF_EACH = """
INSERT INTO organizations VALUES ('org_a', 'A');
INSERT INTO tenants VALUES ('ten_a', 'org_a', 'a', 'pro');
INSERT INTO api_keys VALUES ('k', 'ten_a', 'n', 'live', decode(repeat('00', 32), 'hex'));
INSERT INTO workloads VALUES ('wl_a', 'ten_a', 'spiffe://acme.example/a')"""


class Heard:
    """Keeps what was said, and waits for the next word."""

    def __init__(self) -> None:
        self.said: list[str | None] = []
        self._changed = asyncio.Event()

    @property
    def count(self) -> int:
        return len(self.said)

    def __call__(self, said: str | None) -> None:
        self.said.append(said)
        self._changed.set()

    async def more_than(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            while self.count <= count:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def listening(dsn: str, heard: Heard) -> AsyncIterator[IdentityListener]:
    listener = IdentityListener(dsn, heard, retry_seconds=(0.01, 0.05), probe_seconds=0.2)
    task = asyncio.create_task(listener.run())
    yield listener
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_connecting_may_mean_any_change(database: str) -> None:
    heard = Heard()
    async with listening(database, heard) as listener:
        assert not listener.connected
        await heard.more_than(0)
        assert listener.connected
    assert not listener.connected
    assert heard.said == [None]


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("INSERT INTO organizations VALUES ('org_b', 'B')", "organizations:org_b"),
        ("UPDATE organizations SET suspended_at = now()", "organizations:org_a"),
        ("UPDATE plans SET metering = 'inline' WHERE name = 'pro'", "plans:pro"),
        ("UPDATE tenants SET suspended_at = now()", "tenants:ten_a"),
        ("UPDATE api_keys SET revoked_at = now()", "api_keys:k"),
        ("DELETE FROM api_keys", "api_keys:k"),
        ("UPDATE roles SET scopes = '{admin}' WHERE name = 'viewer'", "roles:viewer"),
        ("DELETE FROM workloads", "workloads:spiffe://acme.example/a"),
        ("INSERT INTO subjects VALUES ('jwt_a', 'ten_a', now())", "subjects:jwt_a"),
    ],
)
async def test_every_change_is_heard_with_its_row_and_a_version_that_rises(
    database: str, pool: Pool, statement: str, row: str
) -> None:
    await pool.execute(SOME_OF_EACH)
    newest = await pool.fetchval("SELECT last_value FROM identity_version")
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        await pool.execute(statement)
        await heard.more_than(1)
    _, said = heard.said
    assert said is not None
    assert said.rpartition(":")[0] == row
    assert int(said.rpartition(":")[2]) > newest


async def test_an_emptied_table_may_mean_any_change(database: str, pool: Pool) -> None:
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        await pool.execute("TRUNCATE workloads")
        await heard.more_than(1)
    assert heard.said == [None, "*"]


async def test_a_use_of_a_key_is_no_change(database: str, pool: Pool) -> None:
    await pool.execute(SOME_OF_EACH)
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        await pool.execute("INSERT INTO key_uses VALUES ('k', now())")
        await pool.execute("TRUNCATE workloads")
        await heard.more_than(1)
    assert heard.said == [None, "*"]


async def test_a_change_that_is_rolled_back_is_not_heard(database: str, pool: Pool) -> None:
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("UPDATE plans SET metering = 'inline'")
            await transaction.rollback()
        await pool.execute("TRUNCATE workloads")
        await heard.more_than(1)
    assert heard.said == [None, "*"]


async def test_a_killed_connection_is_replaced_and_may_mean_any_change(database: str, pool: Pool) -> None:
    heard = Heard()
    async with listening(database, heard) as listener:
        for round_ in range(3):
            await heard.more_than(round_)
            assert await pool.fetchval(KILL_LISTENERS)
        await heard.more_than(3)
        assert listener.connected
        await pool.execute("TRUNCATE workloads")
        await heard.more_than(4)
    assert heard.said == [None] * 4 + ["*"]


async def test_it_waits_for_a_database_that_is_not_there_yet(postgres: str) -> None:
    name = "not_there_yet"
    heard = Heard()
    async with opened(postgres) as administration:
        async with listening(postgres.replace("/postgres?", f"/{name}?"), heard) as listener:
            await asyncio.sleep(0.1)
            assert (heard.count, listener.connected) == (0, False)
            await administration.execute(f"CREATE DATABASE {name}")
            await heard.more_than(0)
        await administration.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_silence_is_probed_and_is_no_change(database: str) -> None:
    heard = Heard()
    async with listening(database, heard) as listener:
        await heard.more_than(0)
        await asyncio.sleep(0.5)
        assert (heard.count, listener.connected) == (1, True)
