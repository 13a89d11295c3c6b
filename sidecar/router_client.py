"""How is the Router asked to stop a request? `DELETE {router}/v1/infer/{request id}`, in the background.

The gateway resets the stream in any case: this is for a Router that would not notice, and for a stream whose worker is
gone. Nobody waits for the answer.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from urllib.parse import quote

import httpx

from sidecar.settings import Settings

_SECONDS = 1.0
# A Router that hangs holds a request for a second: beyond this many, no more are asked.
_MOST_WAITING = 256


class Asked(StrEnum):
    """What came of it."""

    STOPPED = "stopped"
    UNKNOWN = "unknown"  # it has ended there, or the Router has no such path
    FAILED = "failed"
    SKIPPED = "skipped"  # too many were waiting


class RouterClient:
    """Asks the Router to stop requests; does nothing when the settings do not say where it is."""

    def __init__(self, settings: Settings, *, observe: Callable[[Asked], None]) -> None:
        """`observe` is told what came of each."""
        self._url = None if settings.router_url is None else str(settings.router_url).rstrip("/")
        key = settings.router_api_key
        self._observe = observe
        self._running: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            timeout=_SECONDS,
            follow_redirects=False,
            # Only sidecar.settings reads the environment.
            trust_env=False,
            headers={} if key is None else {"x-internal-api-key": key.get_secret_value()},
        )

    def stop(self, request_id: str) -> None:
        """Ask, and return at once."""
        if self._url is None:
            return
        if len(self._running) >= _MOST_WAITING:
            self._observe(Asked.SKIPPED)
            return
        task = asyncio.get_running_loop().create_task(self._ask(f"{self._url}/v1/infer/{quote(request_id, safe='')}"))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def aclose(self) -> None:
        """Leave what is on its way, and close the connections."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._http.aclose()

    async def _ask(self, url: str) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await self._http.delete(url)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            self._observe(Asked.FAILED)
            return
        if answer.is_success:
            self._observe(Asked.STOPPED)
        else:
            self._observe(Asked.FAILED if answer.is_server_error else Asked.UNKNOWN)
