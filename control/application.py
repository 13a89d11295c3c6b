"""What does the gateway itself answer over HTTP, behind Envoy? The application that puts its endpoints together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from authz.directory import Directory
from authz.key_ring import KeyRing
from authz.session import Sessions
from control import jwks
from control.caller import Callers
from control.errors import ErrorBodies, Now, ObserveError
from control.journal import Journal
from control.limits import LimitEndpoints, Standings
from control.sessions import Lifetimes, SessionEndpoints
from store.database import Pool

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
    pool: Pool
    pepper: bytes = field(repr=False)
    lifetimes: Lifetimes
    now: Now
    """An aware time, in UTC."""
    observe_error: ObserveError
    """Is told what nobody expected; the client gets none of it."""


def application(resources: Resources) -> FastAPI:
    """The ASGI application. It publishes no description of itself yet."""
    app = FastAPI(
        title="inference-gateway",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_SILENT,
    )
    now = resources.now
    app.state.callers = Callers(resources.ring, now=now)
    journal = Journal(resources.pool, pepper=resources.pepper, now=now)
    sessions = SessionEndpoints(resources.sessions, journal, resources.lifetimes, pepper=resources.pepper, now=now)
    app.include_router(sessions.router())
    app.include_router(LimitEndpoints(resources.directory, resources.standings, now=now).router())
    app.include_router(jwks.router(resources.ring, now=now))
    ErrorBodies(now=now, observe_error=resources.observe_error).install(app)
    return app
