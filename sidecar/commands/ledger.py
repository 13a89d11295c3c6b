"""Is the ledger right, and how large is it? `inference-gateway ledger ...`: verify it, list its partitions."""

from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from quota.ledger_backlog import LedgerBacklog
from quota.redis_tally import RedisTally, Tally
from quota.reservation import QuotaOutage
from sidecar.commands import command_redis
from sidecar.commands.moment import ago
from sidecar.commands.session import FAILED, fail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.ledger_verification import TALLIED_DAYS, ComparedDay, LedgerVerification, Verification
from sidecar.tables import print_json, print_table
from store.database import Pool
from store.ledger_check import MOST_FOUND
from store.partitions import Partition
from store.partitions import partitions as list_partitions

app = typer.Typer(no_args_is_help=True, help="Verify the ledger, and list its partitions.")
_REDIS_SECONDS = 5.0
_NUMBERS = ("rows", "requests", "tokens", "cost")


@app.command("verify")
def verify(
    *,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="From when on: 7d, 12h, or an ISO date or time in UTC.")
    ] = f"{TALLIED_DAYS}d",
    as_json: AsJson = False,
) -> None:
    """Look for requests with two rows, rows that cannot be, and days that do not add up.

    What was settled on each day is compared with what Redis counted when it was, for the 40 days that Redis remembers.
    Ends with status 1 on any difference. Reads REDIS_URL too.
    """
    now = datetime.now(UTC)
    start = ago("--since", since, now=now)
    pipe = command_redis.pipe(deadline=_REDIS_SECONDS)
    if pipe is None:
        fail(command_redis.UNKNOWN)

    async def work(pool: Pool) -> Verification:
        async with aclosing(pipe):
            return await LedgerVerification(pool, RedisTally(pipe), LedgerBacklog(pipe)).verify(since=start, now=now)

    try:
        found = with_pool(work)
    except QuotaOutage as error:
        fail(str(error))
    if as_json:
        print_json(_described(found))
    else:
        _show(found)
    if not found.right:
        raise typer.Exit(FAILED)


@app.command("partitions")
def partitions(*, as_json: AsJson = False) -> None:
    """List the months that the ledger holds, with their size.

    Rows are those that Postgres estimates.
    """
    found = with_pool(list_partitions)
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "FROM", "UP TO", "ROWS", "BYTES"),
        [(each.name, *_range(each), each.rows, each.bytes) for each in found],
        empty="The ledger has no partitions.",
    )


def _range(each: Partition) -> tuple[str, str]:
    return ("what else there is", "") if each.month is None else (f"{each.month}", f"{each.until}")


def _show(found: Verification) -> None:
    for request_id in found.twice:
        typer.echo(f"The request {request_id} has several rows.")
    for row in found.odd:
        typer.echo(f"The row of {row.request_id} cannot be: {row.flaw}.")
    if MOST_FOUND in {len(found.twice), len(found.odd)}:
        typer.echo(f"No more than {MOST_FOUND} of a kind are shown.")
    if found.differences:
        print_table(
            ("DAY (UTC)", "SHARD", "", "SETTLED", "IN THE LEDGER", "DIFFERENCE"),
            [line for each in found.differences for line in _lines(each)],
            empty="",
        )
    for why, count in Counter(each.unknown for each in found.days if each.unknown is not None).items():
        typer.echo(f"Not compared: {count:,} days of shards; {why}.")
    if found.right:
        typer.echo(f"Nothing is wrong: {_compared(found):,} days of shards add up.")


def _lines(each: ComparedDay) -> list[tuple[Any, ...]]:
    both = [(name, getattr(each.redis, name), getattr(each.ledger, name)) for name in _NUMBERS]
    return [
        (f"{each.day}", each.shard, name, settled, written, written - settled)
        for name, settled, written in both
        if settled != written
    ]


def _described(found: Verification) -> dict[str, Any]:
    return {
        "right": found.right,
        "twice": found.twice,
        "odd": found.odd,
        "compared": _compared(found),
        "differences": [
            {
                "day": each.day,
                "shard": each.shard,
                "settled": _numbers(each.redis),
                "ledger": _numbers(each.ledger),
            }
            for each in found.differences
        ],
        "not_compared": [
            {"day": each.day, "shard": each.shard, "why": each.unknown.name.lower()}
            for each in found.days
            if each.unknown is not None
        ],
    }


def _compared(found: Verification) -> int:
    return sum(each.unknown is None for each in found.days)


def _numbers(tally: Tally) -> dict[str, int]:
    return {name: getattr(tally, name) for name in _NUMBERS}
