"""The schema: from nothing to the newest revision, once, however many ask for it."""

import asyncio
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import Connection

from authz.api_key import generate, keyed_hash
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope
from extproc.lifecycle import FINAL, State
from extproc.record import Degraded, UsageSource
from quota.charges import NOTHING
from quota.limit import Limit, Unit, Window, concurrent_requests, requests_per_minute, tokens_per_day
from store import ledger, migration, plans, tenants
from store.database import DatabaseOutage, Pool, connect, opened
from store.directory import PostgresDirectory
from store.migration import MigrationError, current, migrate, newest
from store.organizations import find_organization
from tests.support.identity_rows import add_tenant
from tests.support.records import DAY, NOON, usage_record


async def test_an_empty_database_reaches_the_newest_revision(empty_database: str) -> None:
    assert await current(empty_database) is None
    assert await migrate(empty_database) == newest()
    assert await current(empty_database) == newest()


async def test_migrating_again_changes_nothing(database: str) -> None:
    async with opened(database) as pool:
        await pool.execute("UPDATE plans SET metering = 'inline' WHERE name = 'pro'")
        assert await migrate(database) == newest()
        assert (await plans.find_plan(pool, "pro")).metering == "inline"


async def test_several_processes_may_migrate_at_once(empty_database: str) -> None:
    reached = await asyncio.gather(*(migrate(empty_database) for _ in range(5)))
    assert set(reached) == {newest()}


async def test_the_shipped_plans(pool: Pool) -> None:
    shipped = {plan.name: plan for plan in await plans.list_plans(pool)}
    assert set(shipped) == {"free", "pro", "enterprise"}
    for name, a_minute, an_hour, a_day, at_once in (
        ("free", 10, 100, 100_000, 2),
        ("pro", 100, 1000, 1_000_000, 10),
        ("enterprise", 1000, 10_000, 100_000_000, 50),
    ):
        hourly = Limit(
            name="requests_per_hour", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=an_hour, seconds=3600
        )
        assert set(shipped[name].limits) == {
            *(requests_per_minute(a_minute), hourly, tokens_per_day(a_day), concurrent_requests(at_once))
        }
    assert {plan.metering for plan in shipped.values()} == {"native"}
    assert {name: plan.priority for name, plan in shipped.items()} == {"free": 1, "pro": 5, "enterprise": 9}


async def test_the_checks_agree_with_the_code(pool: Pool) -> None:
    rows = await pool.fetch(
        "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint "
        "WHERE conrelid = 'inference_requests'::regclass AND contype = 'c'"
    )
    checks = " ".join(row["text"] for row in rows)
    # A rejected request was never admitted, so it has no record.
    for value in (*(FINAL - {State.REJECTED}), *UsageSource, *Degraded):
        assert f"'{value}'" in checks


async def test_a_database_newer_than_the_program_is_left_alone(database: str) -> None:
    connection = await connect(database)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(MigrationError, match="newer"):
        await migrate(database)


async def test_no_database_is_an_outage() -> None:
    with pytest.raises(DatabaseOutage):
        await migrate("postgresql://postgres@/gateway?host=/nowhere")


@pytest.mark.parametrize("dsn", ["nonsense", "postgresql://user:hidden/more@host/name", "http://user:hidden@host"])
async def test_a_bad_address_is_named_without_its_password(dsn: str) -> None:
    with pytest.raises(DatabaseOutage, match="not valid") as raised:
        await migrate(dsn)
    assert "hidden" not in str(raised.value)
    assert raised.value.__cause__ is None


async def _to_revision(dsn: str, revision: str) -> None:
    def upgrade(connection: Connection) -> None:
        config = migration._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    async with migration._connected(dsn) as connection, connection.begin():
        await connection.run_sync(upgrade)


async def test_a_database_in_use_comes_along(empty_database: str) -> None:
    await _to_revision(empty_database, "0001")
    key = generate("test")
    async with opened(empty_database) as pool:
        await pool.execute("INSERT INTO organizations (id, name) VALUES ('org_a', 'a')")
        await pool.execute(
            "INSERT INTO tenants (id, organization_id, name, plan) VALUES ('ten_a', 'org_a', 'a', 'free')"
        )
        await pool.execute(
            "INSERT INTO api_keys (id, tenant_id, name, tag, hash) VALUES ($1, 'ten_a', 'n', 'test', $2)",
            key.id,
            keyed_hash(key.text, b"p"),
        )
        await pool.execute("UPDATE plans SET limits = '[]' WHERE name = 'pro'")
        await migrate(empty_database)
        found = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key.id))
        assert found is not None
        assert Scope.INFERENCE_TEXT in found.scopes
        assert Scope.ADMIN not in found.scopes
        assert "requests_per_hour" in {limit.name for limit in found.tenant.limits}
        assert all(version > 0 for _, version in found.versions)
        assert (await plans.find_plan(pool, "pro")).limits == (), "an edited plan stays as it is"


_ROW_OF_BEFORE = """
INSERT INTO inference_requests (
    request_id, organization_id, tenant_id, principal_id, key_id, path, model, stream, metering, received_at,
    admitted_at, ended_at, state, cause, status, input_tokens, output_tokens, usage_source, input_estimate,
    output_reserved, events, response_bytes)
VALUES ($1, 'org_a', 'ten_a', 'key_k', 'k', '/v1/infer', 'demo', true, 'native', to_timestamp($2::float8 / 1000),
    to_timestamp($2::float8 / 1000), to_timestamp($2::float8 / 1000), 'completed', 'finished', 200, 10, 30, 'exact', 20,
    100, 32, 4096)"""


async def test_a_ledger_and_limits_of_before_quotas_come_along(empty_database: str) -> None:
    await _to_revision(empty_database, "0002")
    record = usage_record()
    async with opened(empty_database) as pool:
        await add_tenant(pool)
        await pool.execute(_ROW_OF_BEFORE, record.admission.request_id, NOON)
        await pool.execute("INSERT INTO plans (name, limits, metering) VALUES ('own', '[]', 'native')")
        await pool.execute("DELETE FROM plans WHERE name = 'enterprise'")
        before = await pool.fetchval("SELECT last_value FROM identity_version")
        await migrate(empty_database)
        old = await ledger.find(pool, record.admission.request_id)
        assert old is not None
        assert (old.ending.output_tokens, old.ending.charges, old.ending.cached_tokens) == (30, NOTHING, 0)
        assert (old.admission.degraded, old.reserved_ms, old.settlement) == (Degraded.NO, None, None)
        assert await ledger.write(pool, [usage_record(ended_ms=NOON + DAY)]) == 1
        assert (await tenants.find_tenant(pool, "ten_a")).time_zone == "UTC"
        assert (await find_organization(pool, "org_a")).limits == ()
        assert {plan.name: plan.priority for plan in await plans.list_plans(pool)} == {"free": 1, "own": 5, "pro": 5}
        # What workers hold of a plan whose priority is another now is of an older version.
        assert await pool.fetchval("SELECT version FROM plans WHERE name = 'free'") > before


_MONTHS_OF_BEFORE = (1_700_000_000_000, 1_701_388_799_999, 1_701_388_800_000, NOON, 0)
"""14 and 30 November 2023, the last millisecond of that month and the next one, January 2026, and no time at all."""


async def test_a_ledger_that_was_one_table_comes_along_with_every_row_and_right(empty_database: str) -> None:
    await _to_revision(empty_database, "0004")
    records = [usage_record(received_ms=each, admitted_ms=each, ended_ms=each) for each in _MONTHS_OF_BEFORE]
    role = f"reader_{uuid4().hex[:12]}"
    async with opened(empty_database) as pool:
        for record in records:
            await pool.execute(_ROW_OF_BEFORE, record.admission.request_id, record.admission.received_ms)
        await pool.execute(f"CREATE ROLE {role}")
        await pool.execute(f"GRANT SELECT, INSERT ON inference_requests TO {role}")
        await migrate(empty_database)
        rows = await pool.fetch("SELECT tableoid::regclass::text AS part FROM inference_requests ORDER BY received_at")
        months = ("1970_01", "2023_11", "2023_11", "2023_12", "2026_01")
        assert [row["part"] for row in rows] == [f"inference_requests_{month}" for month in months]
        for record in records:
            found = await ledger.find(pool, record.admission.request_id)
            assert found is not None
            assert found.admission.received_ms == record.admission.received_ms
        assert await ledger.write(pool, records) == 0, "each is known as the same request"
        rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
        held = [await pool.fetchval(_MAY, role, right) for right in rights]
        assert held == [True, True, False, False]
        assert await pool.fetchval(
            "SELECT has_function_privilege($1, 'ensure_ledger_partition(date)', 'EXECUTE')", role
        )
        await pool.execute(f"DROP OWNED BY {role}")
        await pool.execute(f"DROP ROLE {role}")


_MAY = "SELECT has_table_privilege($1, 'inference_requests', $2)"
_MAY_MAKE = "SELECT has_function_privilege($1, 'ensure_ledger_partition(date)', 'EXECUTE')"
