"""Who hears how every request ended? One process that takes Envoy's access log, settles, and sweeps.

`python -m sidecar.recorder`, started by `sidecar.serve`. It admits nobody and holds no stream, so it has little to
die of: a worker may be killed and no end goes unheard. While this process is away, Envoy sends the access log to the
workers.
"""

import asyncio
import contextlib
import time

import uvloop

from extproc.access_log import AccessLog
from extproc.process import LEASE_MS
from extproc.settlement import Settler, sweep
from quota.redis import RedisReservations
from quota.reservation import QuotaOutage
from sidecar import logs, metrics, redis_client
from sidecar.clock import now_ms
from sidecar.grpc_health import Health
from sidecar.grpc_server import GrpcServer
from sidecar.lifetime import run_until, termination
from sidecar.logs import Logger
from sidecar.settings import Settings
from sidecar.sockets import recorder_socket

# Nobody waits for a settlement: more patience than an admission has.
_REDIS_SECONDS = 2.0
_SWEEP_SECONDS = 2.0
_MS_PER_SECOND = 1000


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


async def record(settings: Settings, logger: Logger) -> None:
    """Take the access log until SIGTERM."""
    terminated = termination()
    observe_error = metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error))
    redis = redis_client.connect(settings, wait_seconds=_REDIS_SECONDS)
    reservations = RedisReservations(redis, deadline=_REDIS_SECONDS)
    settler = Settler(reservations, now=time.monotonic, now_ms=now_ms, observe=metrics.observe_settlement)
    access_log = AccessLog(reservations, settler, observe_error=observe_error).service()
    server = GrpcServer(
        [access_log, Health([access_log.name]).service()],
        path=recorder_socket(settings.socket_dir),
        mode=int(settings.socket_mode, 8),
        max_body_bytes=settings.max_body_bytes,
        observe_error=observe_error,
    )
    async with contextlib.aclosing(redis), contextlib.aclosing(reservations):
        await server.start()
        logger.info("recorder listens", action="recorder_started")
        await run_until(
            terminated, _sweep(reservations, logger), settler.run(), metrics.export(lambda: settler.waiting)
        )
        await server.stop(0)
        await settler.finish()
        metrics.flush()  # what the last settlements counted


def main() -> None:
    """Run the recorder."""
    settings = Settings()
    uvloop.run(record(settings, logs.configure(settings.log_format, process="recorder")))


if __name__ == "__main__":
    main()
