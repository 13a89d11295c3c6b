"""Is there room for a valid request? Who is shed is asked first, then the limits, and in their outage what it means."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from authz import routes
from authz.arrival import Arrival
from authz.grant import Grant
from authz.refusal import Reason, Refusal
from extproc import admission as admissions
from extproc import limit_refusal, rate_limit_headers
from extproc.admission import Tariff
from extproc.granted_limits import limits_of
from extproc.inference_request import InferenceRequest
from extproc.outage_policy import OutagePolicy
from extproc.record import Admission
from extproc.settlement import Settler
from quota.applied import AppliedLimit, AppliedLimits
from quota.breaker import NotAsked, Reserves
from quota.overload import Shedding
from quota.reservation import Claim, Exceeded, QuotaOutage, Reservation

Headers = tuple[tuple[str, str], ...]
# A slot is freed some milliseconds after the client has its answer: the access log comes in small batches. A client
# that asks again at once, at its ceiling, is given that time before it is refused.
_SLOT_GRACE_SECONDS = (0.03, 0.07)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A valid request that asks to be admitted. `grant_text` is what the Grant was read from."""

    grant_text: str
    grant: Grant
    arrival: Arrival
    request: InferenceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request that may run. `record` is the admission as it travels, `headers` say how its limits stand."""

    admission: Admission
    record: bytes
    headers: Headers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Everything that is asked how much is left, and by what a request is measured."""

    reservations: Reserves
    outages: OutagePolicy
    shedding: Shedding
    tariff: Tariff


class Admitter:
    """Takes room for requests. `now_ms` is milliseconds since the epoch.

    `observe_shadowed` is told of each limit in shadow mode that would have refused a request.
    """

    def __init__(
        self,
        quota: Quota,
        settler: Settler,
        *,
        now_ms: Callable[[], int],
        observe_shadowed: Callable[[AppliedLimit], None],
    ) -> None:
        self._quota = quota
        self._settler = settler
        self._now_ms = now_ms
        self._observe_shadowed = observe_shadowed

    async def admit(self, candidate: Candidate) -> Admitted | Refusal:
        """Take room for the request, or say why there is none."""
        grant, arrival, request = candidate.grant, candidate.arrival, candidate.request
        shedding = self._quota.shedding
        if shedding.refuses(grant.priority, arrival.request_id):
            return Refusal(reason=Reason.OVERLOADED, retry_after_ms=shedding.retry_after_ms(arrival.request_id))
        admission = admissions.admit(grant, arrival, request, self._quota.tariff, now_ms=self._now_ms())
        limits = limits_of(candidate.grant_text, arrival.path, request.model)
        claim = admissions.claim(admission, limits)
        try:
            outcome = await self._take(claim)
        except QuotaOutage as outage:
            return await self._without_limits(admission, claim, outage)
        except asyncio.CancelledError:
            # The reservation may have been made all the same.
            self._settler.release(admission)
            raise
        headers = self._told(limits, outcome, arrival.path)
        if isinstance(outcome, Exceeded):
            return limit_refusal.refusal(outcome, time_zone=limits.zone_of(outcome.limit), headers=headers)
        for index in outcome.shadowed:
            self._observe_shadowed(limits.limits[index])
        return Admitted(admission=admission, record=claim.admission, headers=headers)

    def stream_closed(self, admission: Admission) -> None:
        """The ext_proc stream of an admitted request has ended: its end is settled, if nobody else does, from here."""
        self._settler.stream_closed(admission)
        self._quota.outages.shares.end(admission.request_id)

    async def _take(self, claim: Claim) -> Reservation | Exceeded:
        outcome = await self._quota.reservations.reserve(claim)
        for seconds in _SLOT_GRACE_SECONDS:
            if not isinstance(outcome, Exceeded) or not limit_refusal.is_for_want_of_a_slot(outcome):
                break
            await asyncio.sleep(seconds)
            outcome = await self._quota.reservations.reserve(claim)
        return outcome

    async def _without_limits(self, admission: Admission, claim: Claim, outage: QuotaOutage) -> Admitted | Refusal:
        answer = await self._quota.outages.decide(claim)
        if isinstance(answer, Refusal):
            # The reservation may have been made all the same, unless nobody was asked.
            if not isinstance(outage, NotAsked):
                self._settler.release(admission)
            return answer
        # If it was made, it is settled like any other; the record of it need not know that it was.
        degraded = msgspec.structs.replace(admission, degraded=answer)
        return Admitted(admission=degraded, record=admissions.encode(degraded))

    def _told(self, limits: AppliedLimits, outcome: Reservation | Exceeded, path: str) -> Headers:
        dialect, refused = routes.dialect_of(path), isinstance(outcome, Exceeded)
        return tuple(rate_limit_headers.told(limits, outcome.standings, dialect, self._now_ms(), refused=refused))
