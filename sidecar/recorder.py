"""Who hears how every request ended? One process that takes Envoy's access log, settles, and sweeps.

`python -m sidecar.recorder`, started by `sidecar.serve`. It admits nobody and holds no stream, so it has little to
die of: a worker may be killed and no end goes unheard. While this process is away, Envoy sends the access log to the
workers.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial

import uvloop

from extproc.access_log import AccessLog, Observers
from extproc.admission import LEASE_MS
from extproc.record import Admission, Ending
from extproc.settlement import Settler, sweep
from quota.overload import Targets
from quota.redis import RedisReservations
from quota.redis_signals import RedisSignals
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from quota.reservation import QuotaOutage
from sidecar import logs, metrics, redis_check, redis_client, transports
from sidecar.clock import now_ms
from sidecar.grpc_health import Health
from sidecar.lifetime import run_until, termination
from sidecar.logs import Logger
from sidecar.lost_settlements import LostSettlements
from sidecar.router_client import RouterClient
from sidecar.settings import Settings
from sidecar.signals import Publisher
from sidecar.stops import AskedStops, Watch
from sidecar.transports import Server

# Nobody waits for a settlement: more patience than an admission has.
_REDIS_SECONDS = 2.0
_SWEEP_SECONDS = 2.0
_COUNT_SECONDS = 1.0
_MS_PER_SECOND = 1000


@dataclass(frozen=True, slots=True)
class _Heard:
    """Who else is told what the access log says, and who knows what was to be stopped."""

    publisher: Publisher
    watch: Watch
    asked: AskedStops


async def _sweep(reservations: RedisReservations, logger: Logger) -> None:
    """Settle what nobody reports.

    Not before a whole lease has passed since the start, or since Redis was away: until then nobody could report, and
    Envoy may hold entries of what has ended meanwhile.
    """
    quiet_seconds = LEASE_MS / _MS_PER_SECOND
    quiet_until = time.monotonic() + quiet_seconds
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        try:
            if time.monotonic() < quiet_until:
                await reservations.overdue(limit=1)  # asks only whether Redis is there
                continue
            for admission, ending in await sweep(reservations, now_ms=now_ms()):
                metrics.observe_settlement(admission, ending)
                logger.warning("lost", action="request_lost", request_id=admission.request_id)
        except QuotaOutage:
            quiet_until = time.monotonic() + quiet_seconds


async def _count_leases(reservations: RedisReservations) -> None:
    while True:
        await asyncio.sleep(_COUNT_SECONDS)
        with contextlib.suppress(QuotaOutage):
            metrics.LEASES_HELD.set(await reservations.held())


async def record(settings: Settings, logger: Logger) -> None:
    """Take the access log until SIGTERM."""
    terminated = termination()
    pipe = redis_client.pipe(settings, deadline=_REDIS_SECONDS)
    reservations = RedisReservations(pipe)
    publisher = Publisher(RedisSignals(pipe), replica=settings.replica, targets=_targets(settings), now_ms=now_ms)

    def observe(admission: Admission, ending: Ending) -> None:
        metrics.observe_settlement(admission, ending)
        publisher.observe(admission, ending)

    def show() -> None:
        metrics.SETTLEMENTS_WAITING.set(settler.waiting)
        metrics.SHED_SHARE.set(publisher.shed)

    settler = Settler(reservations, now=time.monotonic, now_ms=now_ms, observe=observe)
    stops_pipe, asked = redis_client.pipe(settings, deadline=FOLLOW_DEADLINE_SECONDS), AskedStops()
    router = RouterClient(settings, observe=metrics.observe_router_stop)
    heard = _Heard(publisher, Watch(reservations, RedisStops(pipe), router.stop), asked)
    server = _server(settings, reservations, settler, heard, logger)
    async with contextlib.aclosing(pipe), contextlib.aclosing(stops_pipe), contextlib.aclosing(router):
        await server.start()
        logger.info("recorder listens", action="recorder_started")
        again = LostSettlements(pipe, settler, observe=partial(_tell_settled_again, logger))
        background = (
            _sweep(reservations, logger),
            _count_leases(reservations),
            publisher.run(),
            settler.run(),
            again.run(),
            asked.follow(RedisStops(stops_pipe)),
        )
        await run_until(terminated, *background, metrics.export(show), _tell_concerns(settings, logger))
        await server.stop(0)
        await settler.finish()
        metrics.flush()  # what the last settlements counted


def _tell_settled_again(logger: Logger, count: int) -> None:
    logger.warning("Redis had lost settlements: they are made again", action="settled_again", count=count)


def _server(
    settings: Settings, reservations: RedisReservations, settler: Settler, heard: _Heard, logger: Logger
) -> Server:
    observe_error = metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error))
    access_log = AccessLog(
        reservations,
        settler,
        observe_error=observe_error,
        observers=Observers(
            first_byte=heard.publisher.observe_alive,
            progress=heard.watch.observe_progress,
            stopping=heard.watch.observe_stopping,
            asked=heard.asked,
        ),
    ).service()
    return transports.recorder(settings, [access_log, Health([access_log.name]).service()], observe_error)


async def _tell_concerns(settings: Settings, logger: Logger) -> None:
    for concern in await redis_check.concerns(settings, seconds=_REDIS_SECONDS):
        logger.warning(concern, action="redis_concern")
    await asyncio.Event().wait()


def _targets(settings: Settings) -> Targets:
    seconds = settings.overload_first_byte_seconds
    return Targets(
        first_byte_ms=None if seconds is None else max(1, round(seconds * _MS_PER_SECOND)),
        error_share=settings.overload_error_share,
    )


def main() -> None:
    """Run the recorder."""
    settings = Settings()
    uvloop.run(record(settings, logs.configure(settings.log_format, process="recorder")))


if __name__ == "__main__":
    main()
