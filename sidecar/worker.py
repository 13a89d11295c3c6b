"""What runs in one worker process? Composes the services and serves them at the worker's own address.

`python -m sidecar.worker INDEX`, started by `sidecar.serve`. It starts without Redis and without Postgres, and heals
when they come.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import uvloop

from extproc.access_log import AccessLog, Observers
from extproc.holder import Holder
from extproc.settlement import Settler
from quota.redis import RedisReservations
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from sidecar import admission, identity, logs, metrics, redis_client, transports
from sidecar.admission import Admission, Stores
from sidecar.clock import now_ms
from sidecar.grpc_health import Health
from sidecar.identity import Kept
from sidecar.lifetime import settle_in, termination
from sidecar.logs import Logger
from sidecar.model_rates import KnownRates
from sidecar.revoked_streams import RevokedStreams
from sidecar.settings import Settings
from sidecar.stops import AskedStops
from sidecar.transports import Server
from store import standing
from store.database import Pool, opened
from store.idempotency import PostgresIdempotencyKeys
from transport.service import Service

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
    pipe = redis_client.pipe(settings, deadline=settings.quota_deadline_seconds)
    stops_pipe = redis_client.pipe(settings, deadline=FOLLOW_DEADLINE_SECONDS)
    reservations = RedisReservations(pipe)
    settler = Settler(reservations, now=time.monotonic, now_ms=now_ms, observe=metrics.observe_settlement)
    async with (
        opened(settings.database_url.get_secret_value()) as pool,
        # Its own: retries that come all at once must not keep a caller from being looked up.
        opened(settings.database_url.get_secret_value()) as keys_pool,
        contextlib.aclosing(pipe),
        contextlib.aclosing(stops_pipe),
    ):
        rates = KnownRates(pool, logger=logger)
        keys = PostgresIdempotencyKeys(keys_pool, lifetime=timedelta(hours=settings.idempotency_hours))
        stores = Stores(
            reservations=reservations, settler=settler, pipe=pipe, rates=rates, keys=keys, asked=AskedStops()
        )
        admitting = admission.composed(settings, stores, logger)
        kept: tuple[Kept, ...] = (rates.refresher, *_ending_revoked(settings, pool, admitting))
        async with identity.opened(settings, pool, pipe, logger, kept=kept) as identified:
            server, health = _server(
                settings, index, logger, stores, [identified.authorization.service(), admitting.processor.service()]
            )
            async with _background(
                identified.run(),
                settler.run(),
                admitting.reader.run(),
                stores.asked.follow(RedisStops(stops_pipe), admitting.live),
                metrics.export(partial(_export, settler, admitting)),
            ):
                await _serve(server, health, settings.drain_seconds, logger)
                await settler.finish()
                await admitting.once.finish()
            await identified.finish()


def _ending_revoked(settings: Settings, pool: Pool, admitting: Admission) -> tuple[RevokedStreams, ...]:
    """What ends the requests of those who may not go on; nothing, unless the settings want it."""
    if not settings.end_revoked_streams:
        return ()

    async def fallen(holders: set[Holder]) -> set[Holder]:
        return await standing.fallen(pool, holders, now=datetime.now(UTC))

    return (RevokedStreams(admitting.live, fallen),)


def _server(
    settings: Settings, index: int, logger: Logger, stores: Stores, services: list[Service]
) -> tuple[Server, Health]:
    observe_error = metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error))
    access_log = AccessLog(
        stores.reservations,
        stores.settler,
        observe_error=observe_error,
        observers=Observers(asked=stores.asked),
        stay_seconds=_STAND_IN_SECONDS,
    )
    services = [*services, access_log.service()]
    health = Health(service.name for service in services)
    return transports.worker(settings, index, services, health.service(), observe_error), health


def _export(settler: Settler, admitting: Admission) -> None:
    metrics.SETTLEMENTS_WAITING.set(settler.waiting)
    metrics.LIVE_REQUESTS.set(admitting.live.count)
    admitting.shadow.flush()


async def _serve(server: Server, health: Health, drain_seconds: float, logger: Logger) -> None:
    terminated = termination()
    await server.start()
    settle_in()
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
