"""An Admitter over reservations in memory that can be out, with what it told its observers."""

from dataclasses import dataclass, field

from extproc.admission import Tariff
from extproc.admitter import Admitter, Quota
from extproc.local_shares import LocalShares
from extproc.once import Once
from extproc.outage_policy import OutagePolicy
from quota.applied import AppliedLimit
from quota.breaker import PROBE_SECONDS, Breaker
from quota.estimate import Estimates
from quota.limit import OnOutage
from quota.overload import Shedding
from quota.rate_card import RateCard
from tests.extproc.flaky_reservations import Settling
from tests.extproc.memory_keys import MemoryKeys

SHARES = 4
PEPPER = b"p" * 32
PROBE_MS = int(PROBE_SECONDS * 1000)


@dataclass(slots=True)
class Admitting:
    """One worker of four."""

    settling: Settling = field(default_factory=Settling)
    shadowed: list[AppliedLimit] = field(default_factory=list)
    decided: list[tuple[OnOutage, bool]] = field(default_factory=list)
    outages: list[bool] = field(default_factory=list)
    shares: LocalShares = field(init=False)
    breaker: Breaker = field(init=False)
    shedding: Shedding = field(init=False)
    admitter: Admitter = field(init=False)
    keys: MemoryKeys = field(init=False)
    once: Once = field(init=False)

    def __post_init__(self) -> None:
        clock = self.settling.clock
        self.shares = LocalShares(shares=SHARES, now_ms=clock.now_ms)
        self.breaker = Breaker(self.settling.flaky, now=clock.now, observe=self.outages.append)
        self.shedding = Shedding(clock.now)
        quota = Quota(
            reservations=self.breaker,
            outages=OutagePolicy(shares=self.shares, observe=lambda *decision: self.decided.append(decision)),
            shedding=self.shedding,
            tariff=Tariff(estimates=Estimates(), rates=RateCard()),
        )
        self.admitter = Admitter(
            quota, self.settling.settler, now_ms=clock.now_ms, observe_shadowed=self.shadowed.append
        )
        self.keys = MemoryKeys(clock.now_ms)
        self.once = Once(self.admitter, self.keys, self.settling.flaky, pepper=PEPPER)
