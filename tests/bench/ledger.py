"""How quick and how large is a ledger of ten million rows? Makes one, asks it what is asked of ledgers, prints a table.

`python -m tests.bench.ledger [--rows N]`: some minutes and 6 GB of disk, which it gives back. Postgres is the embedded
one with its own defaults; its files are in the page cache, as they are in use.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeAlias

from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.process import Child, Command
from store import ledger, ledger_check, partitions, requests
from store.database import Pool, opened
from store.migration import migrate
from store.requests import RequestFilter
from store.usage import GroupBy, usage
from tests.bench import cpu, machine

ROWS = 10_000_000
MONTHS = 12
# Of the last whole month, the busiest.
BUSY_SHARE = 0.1
TIMES = 7
# What is made here need not outlive a crash; nothing of that is asked when it is read.
FILLED_QUICKLY = tuple(
    word
    for setting in ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_wal_size=8GB")
    for word in ("-c", setting)
)
BUDGET_SECONDS = 1.0
NEWEST = date(2026, 10, 1)
UNTIL = partitions.months_later(NEWEST, 1)
# One tenant has a fifth of all rows, the others an even share; of eight requests one failed, one was estimated.
_FILL = """
INSERT INTO inference_requests (
    request_id, organization_id, tenant_id, principal_id, key_id, path, model, stream, metering, received_at,
    admitted_at, first_event_at, ended_at, state, cause, status, input_tokens, output_tokens, usage_source,
    input_estimate, output_reserved, events, response_bytes, cached_tokens, reasoning_tokens, charged_requests,
    charged_input_tokens, charged_output_tokens, charged_tokens, cost_micros, input_bytes, plan, output_named,
    reserved_at, settlement, dispatched_at, routing_snapshot, actual_cost)
SELECT gen_random_uuid(), 'org_' || tenant % 50, 'ten_' || lpad(tenant::text, 20, '0'),
       'key_' || lpad((tenant * 10 + n % 10)::text, 12, '0'), lpad((tenant * 10 + n % 10)::text, 12, '0'),
       (ARRAY['/v1/chat/completions', '/v1/responses', '/v1/messages', '/v1/embeddings'])[1 + n % 4],
       'model-' || n % 15, n % 3 > 0, 'native', at, at + interval '2 ms', at + interval '300 ms',
       at + interval '1 s' * (1 + n % 40), CASE WHEN n % 8 = 0 THEN 'failed' ELSE 'completed' END,
       CASE WHEN n % 8 = 0 THEN 'upstream_reset' ELSE 'finished' END, 200, 1000 + n % 999, 300 + n % 99,
       CASE WHEN n % 8 = 1 THEN 'estimated' ELSE 'exact' END, 1000, 1024, 300, 40000, n % 100, n % 50, 1,
       1000 + n % 999, 300 + n % 99, 1300 + n % 999 + n % 99, 20000 + n % 999, 4000, 'pro', true, at,
       (extract(epoch FROM at) * 1000)::bigint * 1000000 + n % 1000, at + interval '3 ms',
       '{"model": "provider/model", "strategy": "cheapest", "candidates": 4}', '{"total_usd": "0.0213"}'
FROM (SELECT n, $1::timestamptz + n * (($2::timestamptz - $1::timestamptz) / $3) AS at,
             CASE WHEN n % 5 = 0 THEN 0 ELSE 1 + (n * 7919) % 200 END AS tenant
      FROM generate_series(0, $3::bigint - 1) AS n) AS made"""
Question: TypeAlias = Callable[[Pool], Awaitable[Any]]
TENANT = f"ten_{0:020}"
SMALL_TENANT = f"ten_{7:020}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """How long a question took, and how much of the CPU all of Postgres used for it: seconds, at the median."""

    question: str
    median: float
    slowest: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the ledger is, in bytes."""

    rows: int
    table: int
    indexes: dict[str, int]


async def measure(rows: int) -> tuple[list[Timed], Sizes]:
    """Make the ledger, ask it, and leave nothing behind."""
    async with _opened_pool() as (pool, postgres):
        await fill(pool, rows)
        return [await _timed(pool, postgres, *each) for each in await _questions(pool)], await _sizes(pool)


async def fill(pool: Pool, rows: int) -> None:
    """Rows over twelve months, in the order of their time, as a ledger writer leaves them."""
    first = partitions.months_later(NEWEST, 1 - MONTHS)
    await partitions.ensure(pool, now=_start(first), ahead=MONTHS)
    busy = int(rows * BUSY_SHARE)
    for distance in range(MONTHS):
        month = partitions.months_later(first, distance)
        count = busy if month == NEWEST else (rows - busy) // (MONTHS - 1)
        _say(f"{month:%Y-%m}: {count:,} rows")
        bounds = (_start(month), _start(partitions.months_later(month, 1)), count)
        await pool.execute(_FILL, *bounds, timeout=3600)
    _say("vacuum")  # as autovacuum does when a tenth of a partition is new
    for each in await partitions.partitions(pool):  # it does not look at the table of all partitions either
        await pool.execute(f"VACUUM ANALYZE {each.name}", timeout=3600)


async def _questions(pool: Pool) -> list[tuple[str, Question]]:
    month = {"since": _start(NEWEST), "until": _start(UNTIL)}
    year = {"since": _start(partitions.months_later(UNTIL, -MONTHS)), "until": _start(UNTIL)}
    of_all = (GroupBy.DAY, GroupBy.MODEL, GroupBy.PRINCIPAL, GroupBy.ROUTE, GroupBy.TENANT)
    asked = [(f"a month by {by}, all tenants", _summing(None, by, month)) for by in of_all]
    asked += [(f"a month by {by}, the largest tenant", _summing(TENANT, by, month)) for by in of_all[:-1]]
    asked += [
        ("a month by day, a small tenant", _summing(SMALL_TENANT, GroupBy.DAY, month)),
        ("a year by day, a small tenant", _summing(SMALL_TENANT, GroupBy.DAY, year)),
        ("a year by model, the largest tenant", _summing(TENANT, GroupBy.MODEL, year)),
        ("a year by day, all tenants", _summing(None, GroupBy.DAY, year)),
    ]
    wanted = RequestFilter(tenant_id=TENANT)
    page = await requests.newest(pool, wanted, limit=100)
    deep, some = page[-1].position, page[50].admission.request_id
    asked += [
        ("the first page of 100", lambda pool: requests.newest(pool, wanted, limit=100)),
        ("the next page", lambda pool: requests.newest(pool, wanted, limit=100, after=deep)),
        ("a request by its id", lambda pool: ledger.find(pool, some)),
        ("the days of a month, to verify", lambda pool: ledger_check.settled(pool, NEWEST, UNTIL)),
    ]
    return asked


def _summing(tenant: str | None, by: GroupBy, span: dict[str, datetime]) -> Question:
    return lambda pool: usage(pool, tenant=tenant, group_by=by, **span)


async def _timed(pool: Pool, postgres: Mapping[str, cpu.Group], question: str, ask: Question) -> Timed:
    await ask(pool)
    taken, used = [], []
    for _ in range(TIMES):
        before, began = cpu.read(postgres), time.perf_counter()
        await ask(pool)
        taken.append(time.perf_counter() - began)
        used.append(cpu.spent(before, cpu.read(postgres))["postgres"])
    return Timed(question=question, median=statistics.median(taken), slowest=max(taken), cpu=statistics.median(used))


async def _sizes(pool: Pool) -> Sizes:
    rows = await pool.fetchval("SELECT count(*) FROM inference_requests", timeout=600)
    table = await pool.fetchval(
        "SELECT sum(pg_table_size(relid)) FROM pg_partition_tree('inference_requests') WHERE isleaf"
    )
    indexes = await pool.fetch(
        "SELECT regexp_replace(parent.relid::regclass::text, '^inference_requests_', '') AS name, "
        "(SELECT sum(pg_relation_size(relid)) FROM pg_partition_tree(parent.relid) WHERE isleaf) AS bytes "
        "FROM (SELECT indexrelid AS relid FROM pg_index WHERE indrelid = 'inference_requests'::regclass) AS parent"
    )
    return Sizes(rows=rows, table=int(table), indexes={row["name"]: int(row["bytes"]) for row in indexes})


@asynccontextmanager
async def _opened_pool() -> AsyncIterator[tuple[Pool, Mapping[str, cpu.Group]]]:
    # Not below a long path: a socket's holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gw-ledger-"))
    server = EmbeddedPostgres(data=folder / "data", sockets=folder / "sock", options=FILLED_QUICKLY)

    def sink(_: str, line: str) -> None:
        if "ERROR" in line:
            _say(line)

    async def launch(command: Command) -> Child:
        return await Child.start(command, sink)

    try:
        child = await server.start(launch, sink)
        try:
            await migrate(server.dsn())
            async with opened(server.dsn(), size=2) as pool:
                yield pool, {"postgres": cpu.Group(roots=(child.pid,))}
        finally:
            await child.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _say(progress: str) -> None:
    sys.stderr.write(f"bench: {progress}\n")


def _table(timed: list[Timed], sizes: Sizes) -> str:
    lines = [f"{'':44}{'median ms':>12}{'slowest ms':>12}{'CPU ms':>12}"]
    lines += [
        f"{each.question:44}{each.median * 1000:12.1f}{each.slowest * 1000:12.1f}{each.cpu * 1000:12.1f}"
        for each in timed
    ]
    parts = ", ".join(f"{name} {size / 2**20:,.0f} MB" for name, size in sizes.indexes.items())
    a_row = (sizes.table + sum(sizes.indexes.values())) / sizes.rows
    lines += ["", f"{sizes.rows:,} rows: {sizes.table / 2**20:,.0f} MB, and indexes: {parts}; {a_row:,.0f} bytes a row"]
    slow = [each.question for each in timed if "a month" in each.question and each.median > BUDGET_SECONDS]
    lines.append(f"Over the budget of {BUDGET_SECONDS:g} s for a month: {', '.join(slow) or 'nothing'}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ledger", description="How quick is a large ledger?")
    parser.add_argument("--rows", type=int, default=ROWS, help="how many rows, over twelve months")
    facts = machine.facts()
    timed, sizes = asyncio.run(measure(parser.parse_args().rows))
    load = [round(each, 1) for each in os.getloadavg()]
    sys.stdout.write(f"{_table(timed, sizes)}\n\n{facts['cores']} cores ({facts['cpu']}); load average now: {load}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
