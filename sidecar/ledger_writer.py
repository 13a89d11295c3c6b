"""How do settled requests reach the ledger? One process, off the hot path: events in, rows out, in batches.

`python -m sidecar.ledger_writer`, started by `sidecar.serve`. An event is acknowledged after its row is committed, and
a row that is there already is left alone: killed at any moment, it loses and doubles nothing.
"""

import asyncio
import contextlib

import msgspec
import uvloop

from extproc import admission as admissions
from extproc import ending as endings
from extproc.record import UsageRecord
from quota.redis import RedisSettledEvents
from quota.reservation import QuotaOutage, SettledEvent
from sidecar import logs, metrics, redis_client
from sidecar.lifetime import run_until, termination
from sidecar.logs import Logger
from sidecar.settings import Settings
from store import ledger
from store.database import DatabaseOutage, Pool, opened

_BATCH = 100  # of each shard
_WAIT_MS = 500
# A batch costs a round of Redis and a commit of Postgres, however small it is: they are let grow.
_GATHER_SECONDS = 0.1
_EXPORT_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_REDIS_SECONDS = 5.0


def _end_if_cancelled() -> None:
    """asyncio.wait_for of Python 3.11, which redis-py uses, may swallow a cancellation (python/cpython#86296)."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class LedgerWriter:
    """Moves settled events into the ledger."""

    def __init__(self, events: RedisSettledEvents, pool: Pool, logger: Logger) -> None:
        self._events = events
        self._pool = pool
        self._logger = logger
        self._out = False

    async def run(self) -> None:
        """Write until cancelled; an outage of Redis or Postgres is waited out."""
        while True:
            try:
                rows = await self.step()
                _end_if_cancelled()
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
        rows = await self._write(batch)
        await self._events.acknowledge(batch)
        metrics.LEDGER_ROWS.inc(rows)
        return rows

    async def _write(self, batch: list[SettledEvent]) -> int:
        records = [record for record in map(self._read, batch) if record is not None]
        try:
            return await ledger.write(self._pool, records)
        except ledger.UnwritableRecords as error:
            refused = error
        for record in refused.records:
            self._give_up("ledger_row_unwritable", repr(record))
        return refused.inserted

    def _read(self, event: SettledEvent) -> UsageRecord | None:
        try:
            return UsageRecord(admission=admissions.decode(event.admission), ending=endings.decode(event.ending))
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


async def _export_metrics(events: RedisSettledEvents) -> None:
    while True:
        await asyncio.sleep(_EXPORT_SECONDS)
        with contextlib.suppress(QuotaOutage):
            metrics.LEDGER_BACKLOG.set(await events.backlog())


async def write(settings: Settings, logger: Logger) -> None:
    """Write the ledger until SIGTERM."""
    terminated = termination()
    redis = redis_client.connect(settings, wait_seconds=_REDIS_SECONDS)
    # Its next life takes the same name, and with it what this one leaves unfinished.
    events = RedisSettledEvents(redis, consumer=settings.replica)
    async with opened(settings.database_url.get_secret_value()) as pool, contextlib.aclosing(redis):
        await run_until(terminated, LedgerWriter(events, pool, logger).run(), _export_metrics(events))


def main() -> None:
    """Run the ledger writer."""
    settings = Settings()
    uvloop.run(write(settings, logs.configure(settings.log_format, process="ledger")))


if __name__ == "__main__":
    main()
