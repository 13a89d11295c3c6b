"""How do settled requests reach the ledger? One process, off the hot path: events in, rows out, in batches.

`python -m sidecar.ledger_writer`, started by `sidecar.serve`. An event is acknowledged after its row is committed and,
when no counter held the request, charged; a row that is there already is left alone, and a charge made only once.
Killed at any moment, it loses and doubles nothing. Beside it the counters are kept true to it (`sidecar.reconciler`),
and its months made and dropped (`sidecar.ledger_upkeep`).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec
import uvloop

from extproc import admission as admissions
from extproc import ending as endings
from extproc.record import UsageRecord
from quota.ledger_backlog import LedgerBacklog, Waiting
from quota.redis_events import RedisSettledEvents
from quota.redis_repair import RedisRepair
from quota.reservation import QuotaOutage, SettledEvent
from sidecar import logs, metrics, redis_client
from sidecar.comparison import Comparisons
from sidecar.late_charges import LateCharges
from sidecar.ledger_upkeep import LedgerUpkeep
from sidecar.lifetime import run_until, termination
from sidecar.logs import Logger
from sidecar.reconciler import Event, Rebuilt, Reconciler, Repaired, Stalled
from sidecar.settings import Settings
from store import ledger
from store.database import DatabaseOutage, Pool, opened
from store.identity_listener import IdentityListener

_BATCH = 100  # of each shard
_WAIT_MS = 500
# A batch costs a round of Redis and a commit of Postgres, however small it is: they are let grow.
_GATHER_SECONDS = 0.2
_EXPORT_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_REDIS_SECONDS = 5.0


class LedgerWriter:
    """Moves settled events into the ledger, and has those charged that no counter holds."""

    def __init__(self, events: RedisSettledEvents, pool: Pool, late: LateCharges, logger: Logger) -> None:
        self._events = events
        self._pool = pool
        self._late = late
        self._logger = logger
        self._out = False
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Write until cancelled; an outage of Redis or Postgres is waited out."""
        while True:
            try:
                rows = await self.step()
                self._note(None)
                if 0 < rows < _BATCH:
                    await asyncio.sleep(_GATHER_SECONDS)
            except (QuotaOutage, DatabaseOutage) as outage:
                self._note(outage)
                self._events.read_again()
                await asyncio.sleep(_RETRY_SECONDS)

    async def step(self) -> int:
        """Write one batch; returns the number of new rows."""
        batch = await self._events.read(count=_BATCH, wait_ms=_WAIT_MS)
        if not batch:
            return 0
        async with self._writing:
            records = [record for record in map(self._read, batch) if record is not None]
            rows = await self._write(records)
            charged = await self._late.charge(records)
            await self._events.acknowledge(batch)
        metrics.LEDGER_ROWS.inc(rows)
        metrics.CHARGED_LATE.inc(charged)
        return rows

    async def in_hand(self) -> None:
        """Wait until what has been read is written, or has failed to be."""
        async with self._writing:
            return

    async def _write(self, records: list[UsageRecord]) -> int:
        try:
            return await ledger.write(self._pool, records)
        except ledger.UnwritableRecords as error:
            refused = error
        for record in refused.records:
            self._give_up("ledger_row_unwritable", repr(record))
        return refused.inserted

    def _read(self, event: SettledEvent) -> UsageRecord | None:
        try:
            return UsageRecord(
                admission=admissions.decode(event.admission),
                ending=endings.decode(event.ending),
                reserved_ms=event.reserved_ms,
                settlement=event.sequence,
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._give_up("ledger_event_unreadable", repr(event))
            return None

    def _give_up(self, action: str, what: str) -> None:
        """The log is the last place that can keep it; the others must not wait behind it for ever."""
        self._logger.error("cannot be written", action=action, what=what)

    def _note(self, outage: Exception | None) -> None:
        """Say once that the ledger stands still, and once that it goes on."""
        if outage is not None and not self._out:
            self._logger.warning("the ledger waits", action="ledger_waiting", reason=str(outage))
        elif outage is None and self._out:
            self._logger.info("the ledger goes on", action="ledger_writing")
        self._out = outage is not None


async def export_backlog(backlog: LedgerBacklog) -> None:
    """Show how far the ledger is behind, until cancelled; while Redis cannot be asked, as it was."""
    while True:
        await asyncio.sleep(_EXPORT_SECONDS)
        with contextlib.suppress(QuotaOutage):
            waiting = await backlog.waiting()
            metrics.LEDGER_BACKLOG.set(sum(each.count for each in waiting))
            metrics.LEDGER_LAG.set(_lag_seconds(waiting, now=time.time()))


def _lag_seconds(waiting: Iterable[Waiting], *, now: float) -> float:
    oldest = [each.oldest_ms / 1000 for each in waiting if each.oldest_ms is not None]
    return max(0.0, now - min(oldest, default=now))


def _telling(logger: Logger) -> Callable[[Event], None]:
    """Who logs and counts what the reconciler did."""

    def tell(event: Event) -> None:
        match event:
            case Rebuilt(shards=shards, counters=counters, units=units):
                metrics.REBUILDS.inc(counters)
                found = {"shards": shards, "counters": counters, "units": units}
                tell = (
                    logger.warning if units else logger.info
                )  # of a new Redis beside an empty ledger there is nothing
                tell("counters are the ledger's again", action="counters_rebuilt", **found)
            case Repaired(drifts=drifts):
                metrics.DRIFT_REPAIRED.inc(len(drifts))
                for drift in drifts:
                    found = {"redis": drift.redis, "ledger": drift.ledger}
                    logger.warning("a counter had drifted", action="drift_repaired", counter=drift.counter, **found)
            case Stalled(reason=reason):
                logger.warning("counters cannot be compared", action="reconciler_waiting", reason=reason)

    return tell


async def write(settings: Settings, logger: Logger) -> None:
    """Write the ledger, and keep the counters to it, until SIGTERM."""
    terminated = termination()
    pipe = redis_client.pipe(settings, deadline=_REDIS_SECONDS)
    # Its next life takes the same name, and with it what this one leaves unfinished.
    events = RedisSettledEvents(pipe, consumer=settings.replica)
    repair = RedisRepair(pipe)
    async with opened(settings.database_url.get_secret_value()) as pool, contextlib.aclosing(pipe):
        writer = LedgerWriter(events, pool, LateCharges(repair, pool), logger)
        comparisons = Comparisons(repair, pool, in_hand=writer.in_hand)
        reconciler = Reconciler(repair, comparisons, pool, observe=_telling(logger), now=time.monotonic)
        listener = IdentityListener(settings.database_url.get_secret_value(), reconciler.announce)
        upkeep = LedgerUpkeep(
            pool, logger, retention_months=settings.ledger_retention_months, now=lambda: datetime.now(UTC)
        )
        exporting = export_backlog(LedgerBacklog(pipe))
        await run_until(terminated, writer.run(), reconciler.run(), listener.run(), upkeep.run(), exporting)


def main() -> None:
    """Run the ledger writer."""
    settings = Settings()
    uvloop.run(write(settings, logs.configure(settings.log_format, process="ledger")))


if __name__ == "__main__":
    main()
