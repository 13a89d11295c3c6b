"""How much work is shed while the Router is overloaded, and whose? A pure control loop and a pure choice.

The loop is AIMD, additive increase and multiplicative decrease (Chiu and Jain 1989; TCP's congestion control): what is
admitted is cut by as much as the signal is above its target, and grows back by a fixed step a second. Of the linear
rules it is the one that neither swings ever wider nor lets two sidecars that share a Router drift apart. Whose
work is shed is chosen as in DAGOR (Zhou et al. 2018, "Overload Control for Scaling WeChat Microservices"): from a count
of what each priority has lately offered, the lowest whole before the next.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

WHOLE = 1000  # shares are thousandths
PRIORITIES = 10
# One in twenty always passes: by them it is noticed that the overload is over.
MOST_SHED = 950
# Fewer requests in a second say too little.
FEWEST_REQUESTS = 10
# What is admitted grows by this each second when all is well: from one in twenty to all in 95 seconds.
RECOVERY = 10
# Between this part of the target and the target nothing changes: without the gap it would swing around the target.
CALM = 600
# How much of Envoy's pressure is too much: at 1 it refuses by itself, whoever it is.
PRESSURE = 0.8
# No cut takes more than a fifth. Deeper ones empty the Router's queue sooner and leave it idle afterwards.
DEEPEST_CUT = 800
# Steps from one cut to the next: the first second after a cut still shows what was admitted before it.
PAUSE = 2
# A share of work that nobody has confirmed for so long is over.
SIGNAL_SECONDS = 5.0
_RETRY_MS, _RETRY_SPREAD_MS = 1000, 4000
# At each new share the counts of what was offered fade by an eighth: they tell of the last eight seconds or so.
_FADING = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Beyond what the Router counts as overloaded; None for never.

    `first_byte_ms` is the time to an answer's first byte at the median of a second, `error_share` the share of its
    answers, 0 to 1, that may be server errors.
    """

    first_byte_ms: int | None = None
    error_share: float | None = None

    @property
    def none(self) -> bool:
        """Whether nothing ever counts as overload."""
        return self.first_byte_ms is None and self.error_share is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a second showed. `first_byte_ms` is the median, None when unknown.

    `pressure` is Envoy's own, 0 to 1, at which it has nothing left; it needs no requests to be believed.
    """

    requests: int
    server_errors: int = 0
    first_byte_ms: int | None = None
    pressure: float = 0.0


class Controller:
    """Decides each second which share of the work is to be shed."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._shed = 0
        self._pause = 0
        self._load_before = 0

    @property
    def shed(self) -> int:
        """The share of the work to shed, in thousandths."""
        return self._shed

    def step(self, sample: Sample) -> int:
        """Take in a second's sample; the share to shed from now on, in thousandths.

        A second with too few requests to judge counts as a good one, so that nothing stays shut for want of requests.
        While a bad signal gets better nothing more is cut: a queue that shrinks needs only time.
        """
        load, before = self._load(sample), self._load_before
        self._load_before = load
        self._pause = max(0, self._pause - 1)
        if load < CALM:
            self._shed = max(0, self._shed - RECOVERY)
        elif load > WHOLE and load >= before and not self._pause:
            self._cut(load)
        return self._shed

    def _cut(self, load: int) -> None:
        kept = max(WHOLE * WHOLE // load, DEEPEST_CUT)
        self._shed = min(MOST_SHED, WHOLE - (WHOLE - self._shed) * kept // WHOLE)
        self._pause = PAUSE

    def _load(self, sample: Sample) -> int:
        """How near the worst signal is to its target, in thousandths."""
        loads = [sample.pressure / PRESSURE]
        if sample.requests >= FEWEST_REQUESTS:
            if self._targets.first_byte_ms is not None and sample.first_byte_ms is not None:
                loads.append(sample.first_byte_ms / self._targets.first_byte_ms)
            if self._targets.error_share is not None:
                loads.append(sample.server_errors / sample.requests / self._targets.error_share)
        return int(max(loads) * WHOLE)


class Shedding:
    """What a worker knows of it, and whom it refuses. `now` is a monotonic clock in seconds.

    It counts what each priority offers; `shed` is to be called about once a second, also while nothing is shed.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._offered = [0] * PRIORITIES
        self._refused = [0] * PRIORITIES  # of each priority, in thousandths
        self._until = -math.inf

    def shed(self, share: int) -> None:
        """Shed this share of the work, in thousandths, until told otherwise, or `SIGNAL_SECONDS` from now."""
        self._refused = refused(self._offered, min(max(share, 0), MOST_SHED))
        self._offered = [count * (_FADING - 1) // _FADING for count in self._offered]
        self._until = self._now() + SIGNAL_SECONDS if share > 0 else -math.inf

    def refuses(self, priority: int, request_id: str) -> bool:
        """Whether this request is to be refused, by a hash of its id. Counts it as offered."""
        self._offered[priority] += WHOLE
        return self._until > self._now() and _hash(request_id) % WHOLE < self._refused[priority]

    def retry_after_ms(self, request_id: str) -> int:
        """After how long it is worth asking again: spread out, so that the refused do not come back together."""
        # Another part of the hash than the one that chose them.
        return _RETRY_MS + _hash(request_id) // WHOLE % _RETRY_SPREAD_MS


def refused(offered: list[int], share: int) -> list[int]:
    """How much of each priority is refused, in thousandths, so that `share` of all that is offered is.

    The lowest priority is refused whole before the next is touched.
    """
    rest = sum(offered) * share // WHOLE
    parts = []
    for count in offered:
        taken = min(count, rest)
        # What offers nothing now stands as those below it do.
        parts.append(taken * WHOLE // count if count else WHOLE if rest else 0)
        rest -= taken
    return parts


def _hash(request_id: str) -> int:
    return zlib.crc32(request_id.encode())
