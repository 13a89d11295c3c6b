"""What becomes of a Router that is offered more than it can do, with and without adaptive admission?

A simulation without chance, second by second, over the real `Controller` and `Shedding`. The Router answers so many
requests a second, in the order of their arrival; what is too much waits, and its time to the first byte grows with it.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import median_low

from quota.overload import Controller, Sample, Shedding, Targets

CAPACITY = 100  # requests a second
IDLE_MS = 300  # to the first byte, when nothing waits
TARGET_MS = 1000
SECONDS = 180
FREE, PRO, ENTERPRISE = 2, 5, 8
PLANS = {FREE: "free", PRO: "pro", ENTERPRISE: "enterprise"}
# From each second on, requests a second of each priority.
OFFERED: dict[int, Mapping[int, int]] = {
    0: {FREE: 20, PRO: 20, ENTERPRISE: 20},
    20: {FREE: 70, PRO: 40, ENTERPRISE: 30},
    70: {FREE: 70, PRO: 70, ENTERPRISE: 50},
    110: {FREE: 20, PRO: 20, ENTERPRISE: 20},
}
OVERLOADED, MORE, CALM_AGAIN = list(OFFERED)[1:]


@dataclass(slots=True)
class Course:
    """What happened, second by second: requests admitted by priority, the median to the first byte, the share shed."""

    admitted: list[Mapping[int, int]] = field(default_factory=list)
    first_byte_ms: list[int] = field(default_factory=list)
    shed: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Router:
    free_at: float = 0.0
    answers: dict[int, list[int]] = field(default_factory=dict)

    def take(self, at: float) -> None:
        start = max(at, self.free_at)
        self.free_at = start + 1 / CAPACITY
        first_byte = start + IDLE_MS / 1000
        self.answers.setdefault(math.floor(first_byte), []).append(round((first_byte - at) * 1000))


def offered(second: int) -> Mapping[int, int]:
    """Requests of each priority in a second."""
    return OFFERED[max(since for since in OFFERED if since <= second)]


@cache
def course(*, adaptive: bool) -> Course:
    """The whole course."""
    now = 0.0
    router, controller, shedding = _Router(), Controller(Targets(first_byte_ms=TARGET_MS)), Shedding(lambda: now)
    found = Course()
    for second in range(SECONDS):
        now = float(second)
        passed: Counter[int] = Counter()
        for at, priority in _arrivals(second):
            request_id = f"{second}-{at:.6f}-{priority}"
            if shedding.refuses(priority, request_id):
                continue
            passed[priority] += 1
            router.take(at)
        times = router.answers.get(second, [])
        found.admitted.append({priority: passed[priority] for priority in PLANS})
        found.first_byte_ms.append(median_low(times) if times else 0)
        share = controller.step(Sample(requests=len(times), first_byte_ms=median_low(times) if times else None))
        found.shed.append(share if adaptive else 0)
        shedding.shed(found.shed[-1])
    return found


def _arrivals(second: int) -> list[tuple[float, int]]:
    """When requests of each priority come, evenly over the second."""
    return sorted(
        (second + index / count, priority) for priority, count in offered(second).items() for index in range(count)
    )
