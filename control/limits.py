"""Which limits hold for the caller, what is used of them, and when does it come back? `/v1/limits`."""

from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Response

from authz.directory import Directory
from authz.identity_token import Caller
from authz.principal import Principal, PrincipalKind
from authz.refusal import Reason, Refusal
from authz.routes import LIMITED_PATHS
from control.caller import Authenticated
from control.errors import Now, Refused
from control.limit_body import LimitList, LimitStatus
from quota.applied import AppliedLimits, Target
from quota.limit import Dimension, Limit
from quota.overview import counted, matched, overview
from quota.reservation import Standing

PATH = "/v1/limits"
# RFC 9111 section 5.2.2.5: the numbers are of this moment, and of this caller.
_NO_STORE = ("cache-control", "no-store")
# As Check says it of a principal that is not there.
_GONE = {
    PrincipalKind.API_KEY: Reason.INVALID_API_KEY,
    PrincipalKind.WORKLOAD: Reason.UNKNOWN_CERTIFICATE,
    PrincipalKind.SESSION: Reason.INVALID_SESSION,
    PrincipalKind.JWT: Reason.UNKNOWN_TENANT,
}
_Route = Annotated[str, Query(description="A path such as `/v1/chat/completions`: only what holds for it.")]
_Model = Annotated[str, Query(description="A model: only what holds for it.")]


class Standings(Protocol):
    """Knows how counters stand; `quota.reservation.Reservations` does."""

    async def standings(self, organization_id: str, limits: AppliedLimits) -> tuple[Standing, ...]:
        """How each limit's counter stands now; raises `QuotaOutage`."""


class LimitEndpoints:
    """Shows callers their own limits."""

    def __init__(self, directory: Directory, standings: Standings, *, now: Now) -> None:
        self._directory = directory
        self._standings = standings
        self._now = now

    def router(self) -> APIRouter:
        """The endpoint."""
        router = APIRouter(tags=["limits"])
        router.add_api_route(PATH, self.list_all, methods=["GET"], summary="List limits")
        return router

    async def list_all(
        self, response: Response, caller: Authenticated, route: _Route = "", model: _Model = ""
    ) -> LimitList:
        """All limits that hold for requests of the caller's principal, and how they stand.

        With `route` and `model` they are those of such a request. What is counted apart for each route or model has
        numbers only with these parameters.
        """
        response.headers.append(*_NO_STORE)
        if route and route not in LIMITED_PATHS:
            raise Refused(Refusal(reason=Reason.INVALID_PARAMETER, param="route", details={"paths": LIMITED_PATHS}))
        principal = await self._principal(caller)
        target = _target(principal, route=route, model=model)
        found = overview(_carried(principal), target)
        limits = counted(found, target.time_zone)
        standings = await self._standings.standings(target.organization_id, limits) if limits.limits else ()
        now = self._now()
        shown = matched(found, limits, standings)
        return LimitList(data=[LimitStatus.of(each, standing, now=now) for each, standing in shown])

    async def _principal(self, caller: Caller) -> Principal:
        found = await self._directory.find(caller.handle)
        if found is None:  # deleted since Check found it
            raise Refused(Refusal(reason=_GONE[caller.principal_kind]))
        return found


def _target(principal: Principal, *, route: str, model: str) -> Target:
    tenant = principal.tenant
    return Target(
        organization_id=tenant.organization_id,
        tenant_id=tenant.id,
        principal_id=principal.id,
        route=route,
        model=model,
        time_zone=tenant.time_zone,
    )


def _carried(principal: Principal) -> tuple[tuple[Dimension, tuple[Limit, ...]], ...]:
    return (
        (Dimension.ORGANIZATION, principal.tenant.organization_limits),
        (Dimension.TENANT, principal.tenant.limits),
        (Dimension.PRINCIPAL, principal.limits),
    )
