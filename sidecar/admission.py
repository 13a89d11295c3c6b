"""How does one worker admit requests? The composition behind Process: limits, breaker, shares, rates, estimates."""

import time
from dataclasses import dataclass
from functools import partial

from extproc.admission import Tariff
from extproc.admitter import Admitter, Quota
from extproc.idempotency import IdempotencyKeys
from extproc.live import LiveRequests
from extproc.local_shares import LocalShares
from extproc.once import Once
from extproc.outage_policy import OutagePolicy
from extproc.process import ExternalProcessor
from extproc.settlement import Settler
from quota.applied import AppliedLimit
from quota.breaker import Breaker, ShardBreakers
from quota.estimate import MILLI, Estimates
from quota.limit import OnOutage
from quota.overload import Shedding
from quota.pipe import Pipe
from quota.redis_signals import RedisSignals
from quota.reservation import Reservations
from sidecar import metrics
from sidecar.clock import now_ms
from sidecar.logs import Logger
from sidecar.model_rates import KnownRates
from sidecar.settings import Settings
from sidecar.shadow_refusals import ShadowRefusals
from sidecar.signals import Reader
from sidecar.stops import AskedStops


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What answers Process, and what keeps its knowledge fresh until cancelled."""

    processor: ExternalProcessor
    live: LiveRequests
    once: Once
    reader: Reader
    shadow: ShadowRefusals


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """Where the limits are kept, who settles under them, what tokens weigh, what is to be stopped.

    `keys` know which requests were made before.
    """

    reservations: Reservations
    settler: Settler
    pipe: Pipe
    rates: KnownRates
    keys: IdempotencyKeys
    asked: AskedStops


def composed(settings: Settings, stores: Stores, logger: Logger) -> Admission:
    """Put it together."""
    estimates, shedding = Estimates(round(settings.bytes_per_token * MILLI)), Shedding(time.monotonic)
    shares = LocalShares(shares=settings.workers * settings.replicas, now_ms=now_ms)
    breaker = ShardBreakers if settings.redis_cluster else Breaker
    quota = Quota(
        reservations=breaker(stores.reservations, now=time.monotonic, observe=_OutagesTold(logger)),
        outages=OutagePolicy(shares=shares, observe=_decided),
        shedding=shedding,
        tariff=Tariff(estimates=estimates, rates=stores.rates),
    )
    shadow = ShadowRefusals(now=time.monotonic, tell=partial(_tell_shadowed, logger))

    def observe_shadowed(applied: AppliedLimit) -> None:
        metrics.observe_shadowed(applied.limit)
        shadow.note(applied)

    admitter = Admitter(quota, stores.settler, now_ms=now_ms, observe_shadowed=observe_shadowed)
    live = LiveRequests(observe=metrics.observe_stop)
    pepper = settings.key_pepper.get_secret_value().encode()
    once = Once(admitter, stores.keys, stores.reservations, pepper=pepper)
    return Admission(
        processor=ExternalProcessor(admitter, live, once, now=time.time, observe=metrics.observe_admission),
        live=live,
        once=once,
        reader=Reader(RedisSignals(stores.pipe), estimates, shedding),
        shadow=shadow,
    )


class _OutagesTold:
    """Says once that the limits cannot be asked, and once that they can."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def __call__(self, out: bool) -> None:  # noqa: FBT001 - an observer has one question
        metrics.LIMITS_OUT.set(int(out))
        if out:
            self._logger.warning("the limits cannot be asked: each limit's own class decides", action="limits_out")
        else:
            self._logger.info("the limits are asked again", action="limits_back")


def _decided(on_outage: OnOutage, passed: bool) -> None:  # noqa: FBT001 - as above
    metrics.observe_outage_decision(on_outage, passed=passed)


def _tell_shadowed(logger: Logger, applied: AppliedLimit, count: int) -> None:
    found = {"limit": applied.limit.name, "subject": applied.subject, "requests": count}
    logger.info("a limit in shadow mode would have refused", action="limit_shadowed", **found)
