"""What runs in one worker process? Composes the services and serves them on the worker's own Unix socket.

`python -m sidecar.worker INDEX`, started by `sidecar.serve`. It starts without Redis and without Postgres, and heals
when they come.
"""

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator

import uvloop

from extproc.access_log import AccessLog
from extproc.process import ExternalProcessor
from extproc.settlement import Settler
from quota.redis import RedisReservations
from sidecar import identity, logs, metrics, redis_client
from sidecar.clock import now_ms
from sidecar.grpc_health import Health
from sidecar.grpc_server import GrpcServer
from sidecar.lifetime import termination
from sidecar.logs import Logger
from sidecar.settings import Settings
from sidecar.sockets import worker_socket
from store.database import opened

# For how long a worker keeps an access-log stream that Envoy opened to it while the recorder was away.
_STAND_IN_SECONDS = 1.0
# Envoy asks every second (envoy/envoy.yaml, health_checks) and believes the second answer.
_LAME_DUCK_SECONDS = 2.5


@contextlib.asynccontextmanager
async def _background(*coroutines: object) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]  # type: ignore[call-overload]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def work(settings: Settings, index: int, logger: Logger) -> None:
    """Serve until SIGTERM, then drain: new calls go to the other workers, running streams finish."""
    observe_error = metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error))
    redis = redis_client.connect(settings, wait_seconds=settings.quota_deadline_seconds)
    reservations = RedisReservations(redis, deadline=settings.quota_deadline_seconds)
    settler = Settler(reservations, now=time.monotonic, now_ms=now_ms, observe=metrics.observe_settlement)
    async with (
        opened(settings.database_url.get_secret_value()) as pool,
        contextlib.aclosing(redis),
        contextlib.aclosing(reservations),
        identity.opened(settings, pool, redis, logger) as identified,
    ):
        processor = ExternalProcessor(reservations, settler, now=time.time, observe=metrics.observe_admission)
        access_log = AccessLog(reservations, settler, observe_error=observe_error, stay_seconds=_STAND_IN_SECONDS)
        services = [identified.authorization.service(), processor.service(), access_log.service()]
        health = Health(service.name for service in services)
        server = GrpcServer(
            [*services, health.service()],
            path=worker_socket(settings.socket_dir, index),
            mode=int(settings.socket_mode, 8),
            max_body_bytes=settings.max_body_bytes,
            observe_error=observe_error,
        )
        async with _background(identified.run(), settler.run(), metrics.export(lambda: settler.waiting)):
            await _serve(server, health, settings.drain_seconds, logger)
            await settler.finish()
        await identified.finish()


async def _serve(server: GrpcServer, health: Health, drain_seconds: float, logger: Logger) -> None:
    terminated = termination()
    await server.start()
    # What is alive now stays so: the collector need not look at it again, or copy its pages after a fork.
    gc.collect()
    gc.freeze()
    logger.info("worker serves", action="worker_started")
    await terminated.wait()
    logger.info("worker drains", action="worker_draining", seconds=drain_seconds)
    health.stop_serving()
    # Envoy's next health check sends new calls elsewhere; until then they are still answered here.
    await asyncio.sleep(min(drain_seconds, _LAME_DUCK_SECONDS))
    await server.stop(drain_seconds)
    logger.info("worker has ended", action="worker_stopped")


def main() -> None:
    """Run the worker whose index is the argument."""
    index = int(sys.argv[1])
    settings = Settings()
    uvloop.run(work(settings, index, logs.configure(settings.log_format, process=f"worker-{index}")))


if __name__ == "__main__":
    main()
