"""What does the gateway itself answer over HTTP, behind Envoy? The application that puts its endpoints together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig

from authz.directory import Directory
from authz.key_ring import KeyRing
from authz.session import Sessions
from control import jwks
from control.api_docs import HEAD, describe
from control.caller import Callers
from control.cancel import CancelEndpoints, Stopping
from control.errors import ErrorBodies, Now, ObserveError
from control.journal import Journal
from control.limits import LimitEndpoints, Standings
from control.observers import Observers
from control.request_events import EventEndpoints
from control.requests import RequestEndpoints
from control.sessions import Lifetimes, SessionEndpoints
from control.usage import UsageEndpoints
from control.webhooks import Outbox, WebhookEndpoints
from store.database import Pool
from store.requests import LiveRequests, Requests

# FastAPI would hand request bodies and exceptions to whatever OpenTelemetry the environment names.
_SILENT: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the endpoints work with. `ring` gives the keys of the identity tokens, None while they are not known."""

    ring: Callable[[], KeyRing | None]
    sessions: Sessions
    directory: Directory
    standings: Standings
    live: LiveRequests
    stopping: Stopping
    observers: Observers
    pool: Pool
    pepper: bytes = field(repr=False)
    lifetimes: Lifetimes
    webhooks_allow_private: bool = False
    now: Now
    """An aware time, in UTC."""
    observe_error: ObserveError
    """Is told what nobody expected; the client gets none of it."""


def application(resources: Resources) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(**HEAD, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, telemetry=_SILENT)
    app.state.callers = Callers(resources.ring, now=resources.now)
    for router in _routers(resources):
        app.include_router(router)
    describe(app)
    ErrorBodies(now=resources.now, observe_error=resources.observe_error).install(app)
    return app


def _routers(resources: Resources) -> Iterator[APIRouter]:
    """The endpoints, in the order in which they are described."""
    now, pool = resources.now, resources.pool
    journal = Journal(pool, pepper=resources.pepper, now=now)
    requests = Requests(resources.live, pool)
    yield RequestEndpoints(requests, pool).router()
    yield EventEndpoints(requests, resources.observers).router()
    yield CancelEndpoints(requests, resources.stopping).router()
    yield UsageEndpoints(pool, now=now).router()
    yield LimitEndpoints(resources.directory, resources.standings, now=now).router()
    yield SessionEndpoints(resources.sessions, journal, resources.lifetimes, pepper=resources.pepper, now=now).router()
    outbox = Outbox(pool=pool, pepper=resources.pepper, allow_private=resources.webhooks_allow_private)
    yield WebhookEndpoints(outbox, now=now).router()
    yield jwks.router(resources.ring, now=now)
