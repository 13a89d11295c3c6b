"""Do the counters hold what the ledger says? `inference-gateway reconcile`: compared, and on demand made right."""

import time
from contextlib import aclosing
from typing import Annotated

import typer

from quota.cluster import ClusterPipe
from quota.drift import Drift
from quota.pipe import RedisPipe
from quota.redis_repair import RedisRepair
from quota.reservation import QuotaOutage
from sidecar.commands import command_redis
from sidecar.commands.session import FAILED, fail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.comparison import Comparisons, LedgerBehind
from sidecar.reconciler import Reconciler, Report
from sidecar.tables import print_json, print_table
from store.database import Pool
from store.tenants import find_tenant

_REDIS_SECONDS = 5.0


def reconcile(
    *,
    repair: Annotated[
        bool, typer.Option("--repair/--dry-run", help="Make the counters what the ledger says, or only show drift.")
    ] = False,
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", help="Only what counts its requests (id or name); all, if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the counters in Redis with the ledger.

    Those that differ are shown.

    Requests that run meanwhile do no harm: what is settled at one moment is compared. Ends with status 1 while a
    counter differs or is lost. Reads REDIS_URL too.
    """

    async def work(pool: Pool) -> Report:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        async with aclosing(_pipe()) as pipe:
            comparisons = Comparisons(redis := RedisRepair(pipe), pool)
            reconciler = Reconciler(redis, comparisons, pool, observe=lambda _: None, now=time.monotonic)
            return await reconciler.check(repair=repair, tenant_id=tenant_id)

    try:
        report = with_pool(work)
    except LedgerBehind as error:
        fail(f"{error}; is `inference-gateway serve` running?")
    except QuotaOutage as error:
        fail(str(error))
    _show(report, as_json=as_json)
    if report.lost or not report.repaired:
        raise typer.Exit(FAILED)


def _pipe() -> RedisPipe | ClusterPipe:
    connected = command_redis.pipe(deadline=_REDIS_SECONDS)
    if connected is None:
        fail(command_redis.UNKNOWN)
    return connected


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "compared": report.compared,
                "lost_shards": report.lost,
                "repaired": bool(report.drifts) and report.repaired,
                "drift": [_described(drift) for drift in report.drifts],
            }
        )
        return
    print_table(
        ("COUNTER", "UNIT", "IN REDIS", "IN THE LEDGER", "DRIFT"),
        [(drift.counter, drift.unit, drift.redis, drift.ledger, drift.difference) for drift in report.drifts],
        empty=f"No drift: {report.compared:,} counters hold what the ledger says.",
    )
    if report.drifts and report.repaired:
        typer.echo(f"Repaired: {len(report.drifts):,} of {report.compared:,} counters hold what the ledger says again.")
    if report.lost:
        typer.echo(
            f"The counters of {len(report.lost)} shards are lost, and nothing is admitted there until `serve`, "
            "or --repair, has made them anew."
        )


def _described(drift: Drift) -> dict[str, object]:
    return {
        "organization": drift.organization_id,
        "counter": drift.counter,
        "unit": drift.unit,
        "redis": drift.redis,
        "ledger": drift.ledger,
        "drift": drift.difference,
    }
