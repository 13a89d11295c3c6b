"""The listener: hears every change, and says so after each time it could not hear."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from store.database import Pool, opened
from store.directory import IdentityListener
from store.plans import get, put

DEADLINE = 10
KILL_LISTENERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'LISTEN%'"""


class Heard:
    """Counts the calls, and waits for the next one."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
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


async def test_connecting_counts_as_a_change(database: str) -> None:
    heard = Heard()
    async with listening(database, heard) as listener:
        assert not listener.connected
        await heard.more_than(0)
        assert listener.connected
    assert not listener.connected


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO organizations VALUES ('org_a', 'A')",
        "UPDATE plans SET metering = 'inline'",
        "UPDATE tenants SET suspended_at = now()",
        "DELETE FROM api_keys",
        "TRUNCATE api_keys",
    ],
)
async def test_every_change_is_heard(database: str, pool: Pool, statement: str) -> None:
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        await pool.execute(statement)
        await heard.more_than(1)


async def test_a_change_that_is_rolled_back_is_not_heard(database: str, pool: Pool) -> None:
    heard = Heard()
    async with listening(database, heard):
        await heard.more_than(0)
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("DELETE FROM api_keys")
            await transaction.rollback()
        await put(pool, await get(pool, "pro"))
        await heard.more_than(1)
    assert heard.count == 2


async def test_a_killed_connection_is_replaced_and_counts_as_a_change(database: str, pool: Pool) -> None:
    heard = Heard()
    async with listening(database, heard) as listener:
        for round_ in range(3):
            await heard.more_than(round_)
            assert await pool.fetchval(KILL_LISTENERS)
        await heard.more_than(3)
        assert listener.connected
        await pool.execute("DELETE FROM api_keys")
        await heard.more_than(4)


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
