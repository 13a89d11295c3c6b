"""How do settled requests reach the ledger? One process, off the hot path: events in, rows out, in batches.

`python -m sidecar.ledger_writer`, started by `sidecar.serve`. An event is acknowledged after its row is committed, and
a row that is there already is left alone: killed at any moment, it loses and doubles nothing. It sweeps, too: a
request that nobody reports any more is settled from what is known. And it takes the access log while no worker lives.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from extproc import admission as admissions
from extproc import ending as endings
from extproc.access_log import AccessLog
from extproc.process import LEASE_MS
from extproc.record import UsageRecord
from extproc.settlement import Settler, sweep
from quota.redis import RedisReservations, RedisSettledEvents
from quota.reservation import QuotaOutage, SettledEvent
from sidecar import logs, metrics, redis_client
from sidecar.grpc_health import Health
from sidecar.grpc_server import GrpcServer
from sidecar.logs import Logger
from sidecar.settings import Settings
from sidecar.sockets import ledger_socket
from store import ledger
from store.database import DatabaseOutage, Pool, opened

_BATCH = 100  # of each shard
_WAIT_MS = 500
# A batch costs a round of Redis and a commit of Postgres, however small it is: they are let grow.
_GATHER_SECONDS = 0.1
_EXPORT_SECONDS = 1.0
_RETRY_SECONDS = 0.25
_SWEEP_SECONDS = 2.0
_REDIS_SECONDS = 5.0
_MS_PER_SECOND = 1000


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
        records = [
            UsageRecord(admission=admissions.decode(event.admission), ending=endings.decode(event.ending))
            for event in batch
        ]
        try:
            return await ledger.write(self._pool, records)
        except ledger.UnwritableRecords as error:
            refused = error
        for record in refused.records:
            # The log is the last place that can keep it; the others must not wait behind it for ever.
            self._logger.error("unwritable", action="ledger_row_unwritable", record=repr(record))
        return refused.inserted

    def _note(self, outage: Exception | None) -> None:
        """Say once that the ledger stands still, and once that it goes on."""
        if outage is not None and not self._out:
            self._logger.warning("the ledger waits", action="ledger_waiting", reason=str(outage))
        elif outage is None and self._out:
            self._logger.info("the ledger goes on", action="ledger_writing")
        self._out = outage is not None


def _now_ms() -> int:
    return int(time.time() * _MS_PER_SECOND)


async def _sweep(reservations: RedisReservations, logger: Logger) -> None:
    """Settle what nobody reports.

    Not before a whole lease has passed since the start, or since Redis was away: until then nobody could report, and
    Envoy may hold entries of what has ended meanwhile.
    """
    quiet_until = time.monotonic() + LEASE_MS / _MS_PER_SECOND
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            overdue = time.monotonic() >= quiet_until
            for admission, ending in await sweep(reservations, now_ms=_now_ms()) if overdue else ():
                metrics.observe_settlement(admission, ending)
                logger.warning("lost", action="request_lost", request_id=admission.request_id)
            await reservations.progress([])
        except QuotaOutage:
            quiet_until = time.monotonic() + LEASE_MS / _MS_PER_SECOND


async def _export_metrics(events: RedisSettledEvents) -> None:
    while True:
        await asyncio.sleep(_EXPORT_SECONDS)
        metrics.flush()
        with contextlib.suppress(QuotaOutage):
            metrics.LEDGER_BACKLOG.set(await events.backlog())


async def write(settings: Settings, logger: Logger) -> None:
    """Write the ledger until SIGTERM."""
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    redis = redis_client.connect(settings, wait_seconds=_REDIS_SECONDS)
    # Its next life on this host takes the same name, and with it what this one leaves unfinished.
    events = RedisSettledEvents(redis, consumer=settings.replica)
    reservations = RedisReservations(redis, deadline=_REDIS_SECONDS)
    settler = Settler(reservations, now=time.monotonic, now_ms=_now_ms, observe=metrics.observe_settlement)
    server = _access_log_server(settings, reservations, settler, logger)
    async with (
        opened(settings.database_url.get_secret_value()) as pool,
        contextlib.aclosing(redis),
        contextlib.aclosing(reservations),
    ):
        await server.start()
        await _until(
            terminated,
            LedgerWriter(events, pool, logger).run(),
            _sweep(reservations, logger),
            settler.run(),
            _export_metrics(events),
        )
        await server.stop(0)
        await settler.finish()


def _access_log_server(
    settings: Settings, reservations: RedisReservations, settler: Settler, logger: Logger
) -> GrpcServer:
    observe_error = metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error))
    access_log = AccessLog(reservations, settler, observe_error=observe_error).service()
    return GrpcServer(
        [access_log, Health([access_log.name]).service()],
        path=ledger_socket(settings.socket_dir),
        mode=int(settings.socket_mode, 8),
        max_body_bytes=settings.max_body_bytes,
        observe_error=observe_error,
    )


async def _until(terminated: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
    """Run the work until the event; a defect in any of it ends the process, and the supervisor starts anew."""
    ended = asyncio.create_task(terminated.wait())
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(coroutine) for coroutine in work}
    done, _ = await asyncio.wait({ended, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in (ended, *tasks):
        task.cancel()
    await asyncio.gather(ended, *tasks, return_exceptions=True)
    for task in done - {ended}:
        task.result()


def main() -> None:
    """Run the ledger writer."""
    settings = Settings()
    uvloop.run(write(settings, logs.configure(settings.log_format, process="ledger")))


if __name__ == "__main__":
    main()
