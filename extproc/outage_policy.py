"""May a request run while its limits cannot be asked? Each limit's own class says so, and the strictest decides."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from authz.refusal import Reason, Refusal
from extproc import limit_refusal
from extproc.local_shares import LocalShares
from extproc.record import Degraded
from quota.applied import AppliedLimits
from quota.limit import OnOutage
from quota.reservation import Claim, Exceeded

_UNAVAILABLE = Refusal(reason=Reason.LIMITS_UNAVAILABLE, retry_after_ms=1000)
_STRICTEST_FIRST = (OnOutage.CLOSED, OnOutage.LOCAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutagePolicy:
    """Decides in place of the limits. `observe` is told of each decision: the class that made it, and the answer."""

    shares: LocalShares
    observe: Callable[[OnOutage, bool], None]

    async def decide(self, claim: Claim) -> Degraded | Refusal:
        """How the request runs, or why not."""
        policy = policy_of(claim.limits)
        answer = await self._answer(policy, claim)
        self.observe(policy, not isinstance(answer, Refusal))
        return answer

    async def _answer(self, policy: OnOutage, claim: Claim) -> Degraded | Refusal:
        match policy:
            case OnOutage.CLOSED:
                return _UNAVAILABLE
            case OnOutage.LOCAL:
                outcome = await self.shares.take(claim)
                if outcome is None:
                    return _UNAVAILABLE
                if isinstance(outcome, Exceeded):
                    return _no_share(outcome, claim.limits.zone_of(outcome.limit))
                return Degraded.LOCAL
            case OnOutage.OPEN:
                return Degraded.OPEN


def policy_of(limits: AppliedLimits) -> OnOutage:
    """The strictest class of those that are enforced; `OPEN` when none is."""
    classes = {applied.limit.on_outage for applied in limits.limits if applied.limit.enforced}
    return next((each for each in _STRICTEST_FIRST if each in classes), OnOutage.OPEN)


def _no_share(exceeded: Exceeded, time_zone: str) -> Refusal:
    if exceeded.retry_after_ms is None:
        # It does not fit into the share, but it may into the limit.
        return _UNAVAILABLE
    refusal = limit_refusal.refusal(exceeded, time_zone=time_zone)
    # What is told there is of the share.
    return replace(refusal, details={**refusal.details, "degraded": Degraded.LOCAL.value})
