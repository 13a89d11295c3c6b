"""The pool: it opens without a database, and it always closes."""

import asyncio

import asyncpg
import pytest

from store.database import opened


async def test_a_pool_opens_and_closes_without_a_database() -> None:
    async with opened("postgresql://postgres@/gateway?host=/nowhere"):
        pass


async def test_a_pool_closes_though_someone_keeps_a_connection(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("store.database.CLOSE_SECONDS", 0.05)
    async with asyncio.timeout(10), opened(database) as pool:
        kept = await pool.acquire()
    with pytest.raises(asyncpg.InterfaceError):
        await kept.execute("SELECT 1")
