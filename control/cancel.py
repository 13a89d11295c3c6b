"""How does a tenant stop one of its own requests? `POST /v1/requests/{id}/cancel`, and the two paths that clients know.

The wish is noted on the request's record and announced to all workers; whichever holds the stream ends it. So it does
not matter where the call arrives, and calling twice does no harm.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Protocol

from fastapi import APIRouter, Response

from authz.identity_token import Caller
from authz.refusal import Reason, Refusal
from control.caller import Authenticated
from control.cancel_body import CancelledRequest, CancelledResponse
from control.errors import Refused
from extproc.lifecycle import Cause
from store.requests import RequestLife

RESPONSE_PREFIX = "resp_"
# An end is known some 30 ms after it: Envoy's log comes in batches of 20 ms.
_LOOK_SECONDS = 0.005
_WAIT_SECONDS = 1.0
# By then the worker has reset the stream, or is not there. The Router is not to be faster: how a request ended is told
# by who ended it, and the client is to hear it of the gateway.
_ROUTER_AFTER_SECONDS = 0.1
# OpenAI's SDK retries a 409 by itself.
_NOT_AGAIN = (("x-should-retry", "false"),)
_NO_STORE = ("cache-control", "no-store")


class Outcome(StrEnum):
    """What came of a call, for whoever counts."""

    CANCELLED = "cancelled"
    CANCELLING = "cancelling"  # not yet ended when the caller was answered
    ENDED = "ended"
    UNKNOWN = "unknown"


class Lives(Protocol):
    """Knows all requests; `store.requests.Requests` does."""

    async def find(self, organization_id: str, tenant_id: str, request_id: str) -> RequestLife | None:
        """The tenant's request, None when it has none. Raises `QuotaOutage` or `DatabaseOutage`."""


class Marks(Protocol):
    """Notes on a request's record that it is to stop; `quota.reservation.Reservations` does."""

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        """False when it is not open. Raises `QuotaOutage`."""


class Stops(Protocol):
    """Tells all workers; `quota.redis_stops.RedisStops` does."""

    async def ask(self, request_id: str, why: str) -> None:
        """Ask whoever holds the request to stop it. Raises `QuotaOutage`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """How a request is stopped. `ask_router` returns at once; `observe` is told what came of a call, and how soon."""

    marks: Marks
    stops: Stops
    ask_router: Callable[[str], None]
    observe: Callable[[Outcome, float], None]


class CancelEndpoints:
    """Stops requests of the caller's own tenant."""

    def __init__(self, lives: Lives, stopping: Stopping) -> None:
        self._lives = lives
        self._with = stopping

    def router(self) -> APIRouter:
        """The endpoints."""
        router = APIRouter(tags=["requests"])
        router.add_api_route(
            "/v1/requests/{request_id}/cancel", self.cancel, methods=["POST"], summary="Cancel a request"
        )
        router.add_api_route(
            "/v1/infer/{request_id}", self.cancel, methods=["DELETE"], summary="Cancel a request", name="cancel_infer"
        )
        router.add_api_route(
            "/v1/responses/{response_id}/cancel",
            self.cancel_response,
            methods=["POST"],
            summary="Cancel a request, as OpenAI's clients do",
        )
        return router

    async def cancel(self, response: Response, caller: Authenticated, request_id: str) -> CancelledRequest:
        """End a request of the caller's tenant.

        200 when it has ended by this call or an earlier one, 202 when it is ending; 409 when it had ended otherwise.
        """
        return CancelledRequest.of(await self._cancel(response, caller, request_id))

    async def cancel_response(self, response: Response, caller: Authenticated, response_id: str) -> CancelledResponse:
        """The same, with the answer that OpenAI's clients read. The id may begin with `resp_`."""
        life = await self._cancel(response, caller, response_id.removeprefix(RESPONSE_PREFIX))
        return CancelledResponse.of(life, response_id)

    async def _cancel(self, response: Response, caller: Caller, request_id: str) -> RequestLife:
        clock = asyncio.get_running_loop().time
        began = clock()
        life = await self._find(caller, request_id)
        if life is not None and life.ending is None:
            life = await self._stop(caller, life)
        outcome = _outcome(life)
        self._with.observe(outcome, clock() - began)
        if life is None:
            raise Refused(Refusal(reason=Reason.UNKNOWN_REQUEST))
        if outcome is Outcome.ENDED:
            raise Refused(Refusal(reason=Reason.REQUEST_ENDED, details=_ended(life), headers=_NOT_AGAIN))
        if outcome is Outcome.CANCELLING:
            response.status_code = HTTPStatus.ACCEPTED
        response.headers.append(*_NO_STORE)
        return life

    async def _find(self, caller: Caller, request_id: str) -> RequestLife | None:
        return await self._lives.find(caller.organization_id, caller.tenant_id, request_id)

    async def _stop(self, caller: Caller, life: RequestLife) -> RequestLife | None:
        """Have it stopped, and say how far it has come by the time that a caller may be kept waiting."""
        request_id = life.admission.request_id
        if not await self._with.marks.stop(caller.organization_id, request_id, why=Cause.CLIENT_CANCEL):
            return await self._find(caller, request_id)  # it has ended since
        # Announced again by every call: the announcement before may have been lost.
        await self._with.stops.ask(request_id, Cause.CLIENT_CANCEL)
        found = await self._until_ended(caller, request_id, seconds=_ROUTER_AFTER_SECONDS)
        self._with.ask_router(request_id)
        if found is None or found.ending is not None:
            return found
        return await self._until_ended(caller, request_id, seconds=_WAIT_SECONDS - _ROUTER_AFTER_SECONDS)

    async def _until_ended(self, caller: Caller, request_id: str, *, seconds: float) -> RequestLife | None:
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        while True:
            life = await self._find(caller, request_id)
            if life is None or life.ending is not None or clock() >= until:
                return life
            await asyncio.sleep(_LOOK_SECONDS)


def _outcome(life: RequestLife | None) -> Outcome:
    if life is None:
        return Outcome.UNKNOWN
    if life.ending is None:
        return Outcome.CANCELLING
    return Outcome.CANCELLED if life.ending.cause is Cause.CLIENT_CANCEL else Outcome.ENDED


def _ended(life: RequestLife) -> dict[str, str]:
    return {"state": life.state.value, "cause": life.ending.cause.value if life.ending else ""}
