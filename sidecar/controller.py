"""Who answers what the gateway itself serves over HTTP? One process on a Unix socket, behind Envoy.

`python -m sidecar.controller`, started by `sidecar.serve`. No request for inference passes it. It starts and listens
without Postgres and Redis, answers 503 for what it has not got, and goes on when they are there.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import uvicorn
import uvloop
from starlette.types import ASGIApp

from authz.key_ring import KeyRing
from control.application import Resources, application
from control.cancel import Stopping
from control.observers import Observers
from control.sessions import Lifetimes
from quota.pipe import Pipe
from quota.redis import RedisReservations
from quota.redis_log import RedisRequestLog
from quota.redis_stops import RedisStops
from sidecar import expired_keys, logs, metrics, redis_client, signing_keys, webhooks
from sidecar.lifetime import run_until, termination
from sidecar.logs import Logger
from sidecar.router_client import RouterClient
from sidecar.settings import Settings
from sidecar.sockets import control_socket
from store.database import opened
from store.directory import PostgresDirectory
from store.identity_listener import IdentityListener
from store.sessions import RedisSessions

_REDIS_SECONDS = 1.0
_GRACE_SECONDS = 3
# Longer than Envoy keeps an idle connection (3 s, envoy/envoy.yaml): cut from here, it might have a request in it.
_KEEP_ALIVE_SECONDS = 5
# Nobody who watches a request has anything to say.
_SOCKET_BYTES = 4096
# Envoy passes on 60 KiB of headers by default.
_HEADER_BYTES = 128 * 1024


@dataclass(slots=True)
class _Keys:
    """The keys of the identity tokens as they were last read; None until then. In an outage those of before go on."""

    ring: KeyRing | None = None

    def use(self, ring: KeyRing) -> None:
        self.ring = ring


class _Server(uvicorn.Server):
    """uvicorn, whose signal handling is left to us."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="websockets-sansio",
                ws_max_size=_SOCKET_BYTES,
                log_config=None,
                access_log=False,
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                h11_max_incomplete_event_size=_HEADER_BYTES,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _now() -> datetime:
    return datetime.now(UTC)


def _bound(settings: Settings) -> socket.socket:
    """The socket, in place of what a killed predecessor left. Nobody can connect before it listens."""
    path = control_socket(settings.socket_dir)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.bind(str(fresh))
    fresh.chmod(int(settings.socket_mode, 8))
    fresh.rename(path)  # never there with another mode
    return bound


async def control(settings: Settings, logger: Logger) -> None:
    """Serve the gateway's own HTTP API until SIGTERM."""
    terminated = termination()
    dsn, pepper = settings.database_url.get_secret_value(), settings.key_pepper.get_secret_value().encode()
    pipe = redis_client.pipe(settings, deadline=_REDIS_SECONDS)
    router = RouterClient(settings, observe=metrics.observe_router_stop)
    async with opened(dsn) as pool, contextlib.aclosing(pipe), contextlib.aclosing(router):
        keys = _Keys()
        reservations, observers = RedisReservations(pipe), Observers(RedisRequestLog(pipe))
        signing = signing_keys.refresher(pool, pepper=pepper, use=keys.use, logger=logger)
        resources = Resources(
            ring=lambda: keys.ring,
            sessions=RedisSessions(pipe, pepper=pepper),
            directory=PostgresDirectory(pool),
            standings=reservations,
            live=reservations,
            stopping=_stopping(reservations, pipe, router),
            observers=observers,
            pool=pool,
            pepper=pepper,
            lifetimes=_lifetimes(settings),
            webhooks_allow_private=settings.webhook_allow_private,
            now=_now,
            observe_error=metrics.error_observer(
                lambda error: logger.error("unexpected", action="error", exc_info=error)
            ),
        )
        server = _Server(application(resources))
        serving = asyncio.create_task(server.serve(sockets=[_bound(settings)]))
        logger.info("controller starts", action="controller_started")
        announced = IdentityListener(dsn, signing.announce).run()
        sending = webhooks.send(pool, settings, logger)
        expiring = expired_keys.keep_deleting(pool, logger)
        await run_until(terminated, signing.run(), observers.run(), announced, sending, expiring, _ended(serving))
        server.should_exit = True
        await serving


def _stopping(reservations: RedisReservations, pipe: Pipe, router: RouterClient) -> Stopping:
    return Stopping(marks=reservations, stops=RedisStops(pipe), ask_router=router.stop, observe=metrics.observe_cancel)


def _lifetimes(settings: Settings) -> Lifetimes:
    return Lifetimes(idle_seconds=settings.session_idle_seconds, lifetime_seconds=settings.session_lifetime_seconds)


async def _ended(serving: asyncio.Task[None]) -> None:
    """Watch the server, which ends before its time only by a defect."""
    await asyncio.shield(serving)


def main() -> None:
    """Run the controller."""
    settings = Settings()
    uvloop.run(control(settings, logs.configure(settings.log_format, process="control")))


if __name__ == "__main__":
    main()
