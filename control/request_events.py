"""What happens to a request, as it happens? `GET /v1/requests/{id}/events` as SSE, `/ws/inference/{id}` as WebSocket.

Both tell what has been first, then what comes, and end with the request. Each event is told once, in order.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, WebSocket, WebSocketDisconnect
from fastapi.sse import EventSourceResponse, ServerSentEvent

from authz.identity_token import Caller
from authz.refusal import Reason, Refusal
from control.caller import Authenticated
from control.errors import Refused
from control.observers import Observers, Watch
from control.places import NoPlace
from extproc import lifecycle_events
from extproc.lifecycle import FINAL, State
from extproc.lifecycle_events import RequestEvent
from quota.reservation import QuotaOutage
from store.database import DatabaseOutage
from store.requests import Requests

# What a log has lost is found by looking the request up.
LOOK_UP_SECONDS = 5.0
_PATH, _SOCKET_PATH = "/v1/requests/{request_id}/events", "/ws/inference/{request_id}"
_RETRY_AFTER_MS = 5000
# RFC 6455 section 7.4.1
_NORMAL_CLOSURE = 1000
_ORDER = {state: place for place, state in enumerate(State)}


@dataclass(frozen=True, slots=True)
class _Watched:
    """A request that somebody watches, and what has happened to it so far."""

    caller: Caller
    request_id: str
    past: list[RequestEvent]
    watch: Watch


class EventEndpoints:
    """The endpoints of a request's events."""

    def __init__(self, requests: Requests, observers: Observers) -> None:
        self._requests = requests
        self._observers = observers

    def router(self) -> APIRouter:
        """The endpoints."""
        endpoints = APIRouter(tags=["requests"])

        async def watched(caller: Authenticated, request_id: str) -> AsyncIterator[_Watched]:
            async with self._watching(caller, request_id) as found:
                yield found

        async def events(
            found: Annotated[_Watched, Depends(watched)], last_event_id: Annotated[str, Header()] = ""
        ) -> AsyncIterator[ServerSentEvent]:
            """CloudEvents: first what has been, then what comes. The stream ends with the request.

            With `last-event-id`, what had been told up to there is left out.
            """
            async for event in self._told(found, last_event_id):
                yield ServerSentEvent(raw_data=_text(event), event=event.data.state.value, id=event.id)

        async def socket(websocket: WebSocket, found: Annotated[_Watched, Depends(watched)]) -> None:
            await self._serve(websocket, found)

        summary = "The events of a request, as they happen"
        endpoints.get(_PATH, response_class=EventSourceResponse, summary=summary)(events)
        endpoints.websocket(_SOCKET_PATH)(socket)
        return endpoints

    @contextlib.asynccontextmanager
    async def _watching(self, caller: Caller, request_id: str) -> AsyncIterator[_Watched]:
        # Watched before it is looked up: what happens in between is told twice, and never not at all.
        try:
            async with self._observers.watching(request_id, caller.tenant_id) as watch:
                past = await self._so_far(caller, request_id)
                if not past:
                    raise Refused(Refusal(reason=Reason.UNKNOWN_REQUEST))
                yield _Watched(caller, request_id, past, watch)
        except NoPlace as error:
            raise Refused(Refusal(reason=Reason.TOO_MANY_WATCHES, retry_after_ms=_RETRY_AFTER_MS)) from error

    async def _told(self, watched: _Watched, last_id: str = "") -> AsyncIterator[RequestEvent]:
        """Every event once, and none that comes before one that was told."""
        pending = watched.past
        state = next((event.data.state for event in pending if event.id == last_id), None)
        while True:
            for event in pending:
                if state is None or _comes_after(event, state):
                    state = event.data.state
                    yield event
            if state in FINAL:
                return
            pending = await self._more(watched)

    async def _more(self, watched: _Watched) -> list[RequestEvent]:
        event = await watched.watch.next(seconds=LOOK_UP_SECONDS)
        if event is not None:
            return lifecycle_events.life(event) if event.data.state in FINAL else [event]
        with contextlib.suppress(QuotaOutage, DatabaseOutage):
            return await self._so_far(watched.caller, watched.request_id)
        return []

    async def _so_far(self, caller: Caller, request_id: str) -> list[RequestEvent]:
        """The events of a request until now; empty when the caller's tenant has none of this id."""
        life = await self._requests.find(caller.organization_id, caller.tenant_id, request_id)
        return [] if life is None else life.told()

    async def _serve(self, websocket: WebSocket, watched: _Watched) -> None:
        await websocket.accept()
        telling = asyncio.create_task(self._tell(websocket, watched))
        leaving = asyncio.create_task(_left(websocket))
        await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (telling, leaving):
            task.cancel()
        await asyncio.gather(telling, leaving, return_exceptions=True)

    async def _tell(self, websocket: WebSocket, watched: _Watched) -> None:
        async for event in self._told(watched):
            await websocket.send_text(_text(event))
        await websocket.close(_NORMAL_CLOSURE)


async def _left(websocket: WebSocket) -> None:
    """Wait until the client is gone; what it sends is not for us."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.receive_text()


def _text(event: RequestEvent) -> str:
    return lifecycle_events.encode(event).decode()


def _comes_after(event: RequestEvent, state: State) -> bool:
    return _ORDER[event.data.state] > _ORDER[state]
