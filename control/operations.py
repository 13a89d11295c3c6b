"""Is the sidecar alive, is it ready, and what has it counted? The HTTP endpoints for whoever operates it."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_OK, _UNAVAILABLE = 200, 503

Probe = Callable[[], Awaitable[bool]]


def application(probes: Mapping[str, Probe], metrics: Callable[[], tuple[bytes, str]]) -> Starlette:
    """The ASGI application.

    Ready means that every probe says yes; the answer shows each. `metrics` gives the exposition and its content type.
    """

    async def livez(_: Request) -> Response:
        return _json({"status": "ok"}, _OK)

    async def readyz(_: Request) -> Response:
        checks = {name: await probe() for name, probe in probes.items()}
        ready = all(checks.values())
        body = {"status": "ready" if ready else "not ready", "checks": checks}
        return _json(body, _OK if ready else _UNAVAILABLE)

    async def exposition(_: Request) -> Response:
        text, content_type = metrics()
        return Response(text, media_type=content_type)

    return Starlette(
        routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", exposition)],
    )


def _json(body: object, status: int) -> Response:
    return Response(msgspec.json.encode(body) + b"\n", status_code=status, media_type="application/json")
