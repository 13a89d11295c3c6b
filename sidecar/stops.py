"""How does a stop reach the stream it is about, and what if it does not?

Every worker follows what is asked and stops what it holds. The recorder, which hears of each running request every few
seconds, asks again for those that run on though they are to stop, and asks for those that have come to too much.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from extproc.lifecycle import STOPPING, Cause
from extproc.live import LiveRequests
from extproc.output_cap import exceeds
from extproc.record import Admission
from quota.reservation import QuotaOutage

# A request ends milliseconds after its stop. More than this many are never stopped in that time.
_REMEMBERED = 10_000
# What waits for Redis or the Router is bounded; what finds no room is asked at the next sign of life.
_MOST_WAITING = 1000
_CAUSES = {cause.value: cause for cause in STOPPING}


class Stops(Protocol):
    """Carries the wish to stop a request to whoever holds it; `quota.redis_stops.RedisStops` does."""

    async def ask(self, request_id: str, why: str) -> None:
        """Ask for a stop. Raises `QuotaOutage`."""

    def follow(self) -> AsyncIterator[tuple[str, str]]:
        """The requests that are to stop, and why, from now on; endless."""


class Marks(Protocol):
    """Notes on a request's record that it is to stop; `quota.reservation.Reservations` does."""

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        """False when it is not open. Raises `QuotaOutage`."""


class AskedStops:
    """Which requests somebody wanted stopped lately, and why."""

    def __init__(self) -> None:
        self._causes: OrderedDict[str, Cause] = OrderedDict()

    def __call__(self, request_id: str) -> Cause | None:
        """Why the request was to stop; None when nobody wanted it."""
        return self._causes.get(request_id)

    async def follow(self, stops: Stops, live: LiveRequests | None = None) -> None:
        """Remember what is asked, and stop what is live, until cancelled."""
        async for request_id, why in stops.follow():
            cause = _CAUSES.get(why)
            if cause is None:  # of a version that is not ours
                continue
            self._causes.setdefault(request_id, cause)
            if len(self._causes) > _REMEMBERED:
                self._causes.popitem(last=False)
            if live is not None:
                live.stop(request_id, cause)


class Watch:
    """Has requests stopped that run on. `ask_router` has the Router stop one, in the background."""

    def __init__(self, marks: Marks, stops: Stops, ask_router: Callable[[str], None]) -> None:
        self._marks = marks
        self._stops = stops
        self._ask_router = ask_router
        self._running: set[asyncio.Task[None]] = set()

    def observe_stopping(self, admission: Admission, why: str) -> None:
        """A request runs on seconds after it was to stop: its worker missed it, or is gone and its stream is not."""
        self._ask_router(admission.request_id)
        self._start(self._stops.ask(admission.request_id, why))

    def observe_progress(self, admission: Admission, *, events: int, response_bytes: int) -> None:
        """A request has come so far."""
        if exceeds(admission.caps, events=events, response_bytes=response_bytes):
            self._start(self._stop(admission, Cause.OUTPUT_LIMIT))

    async def _stop(self, admission: Admission, cause: Cause) -> None:
        if await self._marks.stop(admission.organization_id, admission.request_id, why=cause):
            await self._stops.ask(admission.request_id, cause)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._running) >= _MOST_WAITING:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(_if_redis_can(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)


async def _if_redis_can(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(QuotaOutage):  # the next sign of life asks again
        await work
