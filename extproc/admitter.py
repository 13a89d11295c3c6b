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
from extproc import idempotency, limit_refusal, rate_limit_headers
from extproc.admission import Tariff
from extproc.granted_limits import limits_of
from extproc.inference_request import InferenceRequest
from extproc.lifecycle import Cause
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


class Candidate(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A valid request that asks to be admitted. `grant_text` is what the Grant was read from."""

    grant_text: str
    grant: Grant
    arrival: Arrival
    request: InferenceRequest


class Admitted(msgspec.Struct, frozen=True, gc=False, kw_only=True):
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
        too_long = _refused_length(request, grant.caps.output_tokens)
        if too_long is not None:
            return too_long
        admission = admissions.admit(grant, arrival, request, self._quota.tariff, now_ms=self._now_ms())
        admission = _capped(admission, grant.caps.output_tokens)
        limits = limits_of(candidate.grant_text, arrival.path, request.model)
        claim = admissions.claim(admission, limits)
        try:
            outcome = await self._take(claim)
        except QuotaOutage as outage:
            if arrival.idempotency_key:
                # Without a reservation, a retry could not tell that this request runs.
                self._undo(admission, outage)
                return idempotency.unavailable()
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

    def stream_closed(self, admission: Admission, *, stopped: Cause | None = None, answered: bool = False) -> None:
        """The ext_proc stream of an admitted request has ended: its end is settled, if nobody else does, from here.

        `stopped` is why this worker has ended it, `answered` whether Envoy has the whole answer: the client may read
        it for long yet, and how that ends is told by the access log or, failing that, by the end of the lease.
        """
        self._quota.outages.shares.end(admission.request_id)
        # What was admitted without the store has no lease there that could run out.
        if not answered or admission.degraded:
            self._settler.stream_closed(admission, stopped=stopped)

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
            self._undo(admission, outage)
            return answer
        # If it was made, it is settled like any other; the record of it need not know that it was.
        degraded = msgspec.structs.replace(admission, degraded=answer)
        return Admitted(admission=degraded, record=admissions.encode(degraded))

    def _undo(self, admission: Admission, outage: QuotaOutage) -> None:
        """The reservation may have been made all the same, unless nobody was asked."""
        if not isinstance(outage, NotAsked):
            self._settler.release(admission)

    def _told(self, limits: AppliedLimits, outcome: Reservation | Exceeded, path: str) -> Headers:
        dialect, refused = routes.dialect_of(path), isinstance(outcome, Exceeded)
        return tuple(rate_limit_headers.told(limits, outcome.standings, dialect, self._now_ms(), refused=refused))


def _refused_length(request: InferenceRequest, most: int) -> Refusal | None:
    """What stands against the maximum that the caller names; `most` 0 allows any."""
    named = request.max_output_tokens
    if not most or named is None or named <= most:
        return None
    return Refusal(
        reason=Reason.EXCEEDS_LIMIT,
        message=f"The plan allows {most:,} tokens of output, all choices together; {named:,} were asked for.",
        param=request.output_field,
        details={"output_tokens": most},
    )


def _capped(admission: Admission, most: int) -> Admission:
    """An answer without a maximum of its own is stopped at the plan's: more need not be reserved."""
    if not most or admission.output_reserved <= most:
        return admission
    return msgspec.structs.replace(admission, output_reserved=most)
