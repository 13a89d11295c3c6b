"""The ledger's months: made ahead and once, whoever asks; filled by receipt; refused to change; dropped as a whole."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.record import UsageRecord
from store import consumption, ledger, ledger_check, partitions, past_requests, requests
from store.database import DatabaseOutage, Pool
from store.partitions import Partition, drop_before, ensure, months_later, oldest_kept
from tests.support.records import usage_record

NOW = datetime(2031, 11, 30, 23, 59, tzinfo=UTC)
NOVEMBER, JANUARY = date(2031, 11, 1), date(2032, 1, 1)
MADE = [NOVEMBER, date(2031, 12, 1), JANUARY]
PARENT, DEFAULT = "inference_requests", "inference_requests_default"
FUNCTIONS = ("ensure_ledger_partition(date)", "drop_ledger_partition(date)")


def ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def received(*time: int, **changes: Any) -> UsageRecord:
    return usage_record(received_ms=ms(datetime(*time, tzinfo=UTC)), **changes)  # type: ignore[arg-type, misc]


async def write(pool: Pool, *records: UsageRecord) -> None:
    assert await ledger.write(pool, records) == len(records)


async def where(pool: Pool, record: UsageRecord) -> str:
    """The partition that holds the record's row."""
    query = f"SELECT tableoid::regclass::text FROM {PARENT} WHERE request_id = $1"  # noqa: S608
    [row] = await pool.fetch(query, record.admission.request_id)
    return str(row[0])


async def months(pool: Pool) -> list[date]:
    return [each.month for each in await partitions.partitions(pool) if each.month is not None]


async def dropped(pool: Pool, month: date) -> list[date]:
    return [each async for each in drop_before(pool, month)]


async def test_the_migration_makes_this_month_and_the_next_two(pool: Pool) -> None:
    today = datetime.now(UTC)
    assert await ensure(pool, now=today) == []
    assert await months(pool) == [oldest_kept(today, -distance) for distance in range(3)]


async def test_months_are_made_once_however_often_and_by_however_many(pool: Pool) -> None:
    made = await asyncio.gather(*(ensure(pool, now=NOW) for _ in range(6)))
    assert sorted(month for each in made for month in each) == MADE
    assert await ensure(pool, now=NOW) == []
    assert await ensure(pool, now=NOW, ahead=3) == [date(2032, 2, 1)]


async def test_a_row_is_in_the_month_of_its_receipt_in_utc(pool: Pool) -> None:
    await ensure(pool, now=NOW)
    first, last = received(2031, 12, 1), received(2031, 12, 31, 23, 59, 59, 999_000)
    before, after = received(2031, 11, 30, 23, 59, 59, 999_000), received(2032, 1, 1)
    await write(pool, first, last, before, after)
    found = [await where(pool, each) for each in (before, first, last, after)]
    assert found == [f"{PARENT}_{month}" for month in ("2031_11", "2031_12", "2031_12", "2032_01")]


async def test_what_has_no_month_is_written_all_the_same_and_moves_when_it_has(pool: Pool) -> None:
    await ensure(pool, now=NOW)
    stray, ahead, twin = received(1970, 1, 1), received(2032, 2, 29), received(2031, 10, 31)
    await write(pool, stray, ahead, twin)
    assert {await where(pool, each) for each in (stray, ahead, twin)} == {DEFAULT}
    assert await ensure(pool, now=NOW) == [date(1970, 1, 1), date(2031, 10, 1)]
    assert await where(pool, stray) == f"{PARENT}_1970_01"
    assert await where(pool, ahead) == DEFAULT, "months that are far ahead wait: a clock may be wrong"
    assert await ensure(pool, now=NOW + timedelta(days=1)) == [date(2032, 2, 1)]
    assert await where(pool, ahead) == f"{PARENT}_2032_02"
    assert await ledger.write(pool, [stray, ahead, twin]) == 0
    assert await ledger.find(pool, ahead.admission.request_id) == ahead
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await pool.execute(f"DELETE FROM {DEFAULT}")  # noqa: S608


async def test_writers_and_makers_at_once_lose_and_double_nothing(pool: Pool) -> None:
    records = [received(2031, 10 + n % 3, 1 + n % 28) for n in range(300)]
    makers = (ensure(pool, now=NOW), ensure(pool, now=NOW, ahead=0), ensure(pool, now=NOW - timedelta(days=31)))
    batches = [records[at : at + 30] for at in range(0, 300, 30)]
    written = await asyncio.gather(*makers, *(ledger.write(pool, each) for each in (*batches, *batches)))
    assert sum(written[3:]) == 300  # type: ignore[arg-type]
    await ensure(pool, now=NOW)
    assert {await where(pool, each) for each in records[::7]} <= {f"{PARENT}_2031_{n}" for n in (10, 11, 12)}
    assert await ledger.write(pool, records) == 0


@pytest.mark.parametrize("part", [PARENT, f"{PARENT}_2031_12", DEFAULT])
@pytest.mark.parametrize("statement", ["UPDATE {} SET status = 1", "DELETE FROM {}", "TRUNCATE {}"])
async def test_what_is_written_cannot_be_changed_in_any_partition(pool: Pool, part: str, statement: str) -> None:
    await ensure(pool, now=NOW)
    await write(pool, received(2031, 12, 5), received(1980, 1, 1))
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await pool.execute(statement.format(part))
    assert await pool.fetchval(f"SELECT count(*) FROM {PARENT}") == 2  # noqa: S608


async def test_every_partition_has_every_index(pool: Pool) -> None:
    await ensure(pool, now=NOW)
    names = [each.name for each in await partitions.partitions(pool)]
    rows = await pool.fetch(
        "SELECT tablename, count(*) FROM pg_indexes WHERE tablename = ANY ($1::text[]) GROUP BY 1", [*names, PARENT]
    )
    counts: dict[str, int] = {row["tablename"]: row["count"] for row in rows}
    assert set(counts) == {*names, PARENT}
    assert set(counts.values()) == {5}


async def test_they_are_listed_oldest_first_with_their_size(pool: Pool) -> None:
    await ensure(pool, now=NOW)
    await write(pool, *(received(2031, 12, 5) for _ in range(5)))
    await pool.execute(f"ANALYZE {PARENT}")
    *_, december, _, default = await partitions.partitions(pool)
    assert december == Partition(name=f"{PARENT}_2031_12", month=date(2031, 12, 1), rows=5, bytes=december.bytes)
    assert december.bytes > default.bytes > 0
    assert (december.until, default.month, default.until) == (JANUARY, None, None)


async def test_whole_months_are_dropped_and_the_others_stay(pool: Pool) -> None:
    await ensure(pool, now=datetime(2020, 12, 5, tzinfo=UTC), ahead=3)
    old, kept = received(2020, 12, 31), received(2021, 1, 1)
    await write(pool, old, kept)
    assert await dropped(pool, date(2021, 1, 1)) == [date(2020, 12, 1)]
    assert await dropped(pool, date(2021, 1, 1)) == []
    assert await ledger.find(pool, old.admission.request_id) is None
    assert await ledger.find(pool, kept.admission.request_id) == kept
    both = await asyncio.gather(*(dropped(pool, date(2021, 3, 1)) for _ in range(2)))
    assert sorted(month for each in both for month in each) == [date(2021, 1, 1), date(2021, 2, 1)]
    assert await months(pool) == [date(2021, 3, 1), *(oldest_kept(datetime.now(UTC), -n) for n in range(3))]
    await write(pool, received(2020, 12, 31))  # into the default partition again


async def test_the_last_two_months_are_never_dropped(pool: Pool) -> None:
    today = datetime.now(UTC)
    await ensure(pool, now=datetime.combine(oldest_kept(today, 3), datetime.min.time(), UTC))
    before = await months(pool)
    with pytest.raises(DatabaseOutage, match="too young"):
        await dropped(pool, NOVEMBER)
    assert await months(pool) == before[1:], "the oldest one may go"


async def test_a_reader_of_the_ledger_keeps_nobody_waiting_for_long(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_LOCK_TIMEOUT", "SET LOCAL lock_timeout = '50ms'")
    await ensure(pool, now=NOW)
    await write(pool, received(1980, 1, 1))
    async with pool.acquire() as reader, reader.transaction():
        await reader.fetch(f"SELECT count(*) FROM {PARENT}")  # noqa: S608
        with pytest.raises(DatabaseOutage, match="lock timeout"):
            await ensure(pool, now=NOW)
        await write(pool, received(1980, 1, 2))
    assert await ensure(pool, now=NOW) == [date(1980, 1, 1)]


async def test_who_may_only_write_the_ledger_may_make_months_but_drop_no_table(pool: Pool) -> None:
    role = f"writer_{uuid4().hex[:12]}"
    await pool.execute(f"CREATE ROLE {role}")
    await pool.execute(f"GRANT SELECT, INSERT ON {PARENT} TO {role}")
    await pool.execute(f"GRANT EXECUTE ON FUNCTION {', '.join(FUNCTIONS)} TO {role}")
    async with pool.acquire() as connection:
        await connection.execute(f"SET ROLE {role}")
        assert await connection.fetchval("SELECT ensure_ledger_partition($1)", NOVEMBER)
        for statement in (f"DROP TABLE {PARENT}_2031_11", f"TRUNCATE {PARENT}_2031_11", f"TRUNCATE {DEFAULT}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        with pytest.raises(asyncpg.RaiseError, match="too young"):
            await connection.fetchval("SELECT drop_ledger_partition($1)", NOVEMBER)
        await connection.execute("RESET ROLE")
    await pool.execute(f"DROP OWNED BY {role}")
    await pool.execute(f"DROP ROLE {role}")


async def test_who_was_not_given_them_may_not_call_the_functions(pool: Pool) -> None:
    may = "SELECT has_function_privilege('pg_monitor', f::regprocedure, 'EXECUTE') FROM unnest($1::text[]) AS f"
    public = await pool.fetch(may, FUNCTIONS)
    assert [row[0] for row in public] == [False, False]


@given(st.integers(0, 12 * 8000), st.integers(0, 12 * 8000))
def test_months_are_counted_over_the_years(one: int, other: int) -> None:
    epoch = date(1970, 1, 1)
    first, second = months_later(epoch, one), months_later(epoch, other)
    assert (first.day, first.year - 1970, first.month) == (1, one // 12, one % 12 + 1)
    assert months_later(first, other - one) == second


SOME_ID, SOME_TIME, LATER = UUID(int=7), NOW, NOW + timedelta(days=31)
QUESTIONS: dict[str, tuple[str, Sequence[object]]] = {
    "by id": ("SELECT * FROM inference_requests WHERE request_id = $1", (SOME_ID,)),
    "a page": requests._Statement(requests.RequestFilter(tenant_id="ten_a")).text("DESC", 10),
    "an export": requests._Statement(requests.RequestFilter(tenant_id="ten_a")).text("ASC", 10),
    "usage of a tenant": (
        "SELECT sum(cost_micros) FROM inference_requests WHERE tenant_id = $1 AND ended_at >= $2 AND ended_at < $3",
        ("ten_a", SOME_TIME, LATER),
    ),
    "usage of all": ("SELECT sum(cost_micros) FROM inference_requests WHERE ended_at >= $1", (SOME_TIME,)),
    "what counts": (consumption._USES, (["ten_a"], SOME_TIME, 1, 1, 2, 1, 0, [])),
    "what was written": (consumption._WRITTEN, ([SOME_ID], [1])),
    "the past": (past_requests._ADMITTED, (["ten_a"], SOME_TIME, LATER)),
    "the days": (ledger_check._SETTLED, (1, 2, 3)),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_every_question_finds_its_rows_by_an_index_of_each_month(pool: Pool, question: str) -> None:
    query, values = QUESTIONS[question]
    async with pool.acquire() as connection:
        await connection.execute("SET enable_seqscan = off")  # of so few rows, all would be read else
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}", *values))
        await connection.execute("RESET enable_seqscan")
    assert "Seq Scan on inference_requests" not in plan
    assert "Index" in plan
