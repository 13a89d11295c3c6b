"""The contract of `authz.directory.Directory`: one suite, in memory and over Postgres."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import msgspec
import pytest

from authz.directory import Directory, DirectoryOutage, KeyRecord
from authz.grant import Metering
from quota.limit import requests_per_minute, tokens_per_day
from store.database import Pool, connect, open_pool
from store.directory import PostgresDirectory
from tests.support.memory_directory import MemoryDirectory

JANUARY = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
RECORD = KeyRecord(
    id="7Kq2mWZp4TsB",
    hash=bytes(range(32)),
    revoked_at=None,
    expires_at=None,
    organization_id="org_a",
    organization_suspended=False,
    tenant_id="ten_a",
    tenant_suspended=False,
    plan="tailored",
    limits=(requests_per_minute(7), tokens_per_day(9_007_199_254_740_993)),
    metering=Metering.INLINE,
)


class World(Protocol):
    """A directory, and the hand that fills it."""

    @property
    def directory(self) -> Directory: ...

    async def add(self, record: KeyRecord) -> None: ...

    async def break_down(self) -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryWorld:
    directory: MemoryDirectory

    async def add(self, record: KeyRecord) -> None:
        self.directory.add(record)

    async def break_down(self) -> None:
        self.directory.out = True


@dataclass(frozen=True, slots=True)
class PostgresWorld:
    pool: Pool

    @property
    def directory(self) -> Directory:
        return PostgresDirectory(self.pool)

    async def add(self, record: KeyRecord) -> None:
        organization_suspended = JANUARY if record.organization_suspended else None
        tenant_suspended = JANUARY if record.tenant_suspended else None
        limits = msgspec.json.encode(record.limits).decode()
        for statement, *values in (
            ("INSERT INTO organizations VALUES ($1, 'A', $2)", record.organization_id, organization_suspended),
            ("INSERT INTO plans VALUES ($1, $2::jsonb, $3)", record.plan, limits, record.metering),
            (
                "INSERT INTO tenants VALUES ($1, $2, 'a', $3, $4)",
                *(record.tenant_id, record.organization_id, record.plan, tenant_suspended),
            ),
            (
                "INSERT INTO api_keys VALUES ($1, $2, 'n', 'live', $3, $4, $5)",
                *(record.id, record.tenant_id, record.hash, record.expires_at, record.revoked_at),
            ),
        ):
            await self.pool.execute(str(statement), *values)

    async def break_down(self) -> None:
        await self.pool.close()


@pytest.fixture(params=["memory", "postgres"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld(MemoryDirectory())
        return
    pool = await open_pool(request.getfixturevalue("database"))
    yield PostgresWorld(pool)
    await pool.close()


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, revoked_at=JANUARY),
        replace(RECORD, expires_at=JANUARY),
        replace(RECORD, organization_suspended=True),
        replace(RECORD, tenant_suspended=True),
        replace(RECORD, limits=()),
        replace(RECORD, metering=Metering.NATIVE),
    ],
    ids=["good", "revoked", "expired", "organization suspended", "tenant suspended", "no limits", "native"],
)
async def test_a_key_is_found_with_its_whole_chain_whatever_its_state(world: World, record: KeyRecord) -> None:
    await world.add(record)
    assert await world.directory.find_key(record.id) == record


@pytest.mark.parametrize("key_id", ["unknown", "", "' OR ''='", RECORD.id.lower(), RECORD.id[:-1]])
async def test_an_unknown_key_is_none(world: World, key_id: str) -> None:
    await world.add(RECORD)
    assert await world.directory.find_key(key_id) is None


async def test_an_outage_is_not_an_unknown_key(world: World) -> None:
    await world.add(RECORD)
    await world.break_down()
    with pytest.raises(DirectoryOutage):
        await world.directory.find_key(RECORD.id)


async def test_no_server_is_an_outage() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    with pytest.raises(DirectoryOutage):
        await PostgresDirectory(pool).find_key(RECORD.id)
    await pool.close()


async def test_a_database_without_tables_is_an_outage(empty_database: str) -> None:
    pool = await open_pool(empty_database)
    with pytest.raises(DirectoryOutage, match="migrate"):
        await PostgresDirectory(pool).find_key(RECORD.id)
    await pool.close()


async def test_limits_that_cannot_be_read_let_nobody_in(pool: Pool) -> None:
    await PostgresWorld(pool).add(RECORD)
    await pool.execute("""UPDATE plans SET limits = '[{"name": "x"}]'""")
    with pytest.raises(DirectoryOutage, match="limits"):
        await PostgresDirectory(pool).find_key(RECORD.id)


async def test_waiting_for_a_free_connection_ends_at_the_deadline(database: str) -> None:
    pool = await open_pool(database, size=1)
    async with pool.acquire():
        with pytest.raises(DirectoryOutage):
            await PostgresDirectory(pool, deadline_seconds=0.05).find_key(RECORD.id)
    assert await PostgresDirectory(pool).find_key(RECORD.id) is None
    await pool.close()


async def test_a_broken_connection_is_replaced(database: str, pool: Pool) -> None:
    await PostgresWorld(pool).add(RECORD)
    directory = PostgresDirectory(pool)
    assert await directory.find_key(RECORD.id) == RECORD
    killer = await connect(database)
    assert await killer.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await killer.close()
    async with asyncio.timeout(10):
        while True:
            # The question that finds the connection dying may fail; the next one has another.
            with contextlib.suppress(DirectoryOutage):
                assert await directory.find_key(RECORD.id) == RECORD
                return
