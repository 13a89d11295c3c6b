"""What does each kind of limit let pass of a burst?

Simulations without chance over `MemoryReservations`, whose clock is turned by hand. Times are counted from midnight.
"""

import asyncio
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from quota.charges import Charges
from quota.limit import Limit, Unit, Window
from quota.memory import MemoryReservations
from quota.reservation import Reservation
from tests.support.values import Clock, claim, held, settlement

MIDNIGHT_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000

# Requests of one tenant: some each minute, and for twenty minutes around one o'clock sixty more.
CEILING = 600  # an hour
BURST = 100
START, END = 11 * HOUR, 15 * HOUR + MINUTE
BURST_FROM, BURST_TO = 12 * HOUR + 50 * MINUTE, 13 * HOUR + 10 * MINUTE
_STEADY_MS, _BURST_MS = 12 * SECOND, 1 * SECOND

# Answers that are all reserved with as many tokens, use less, and run at the same time.
TOKEN_CEILING = 60_000  # a minute
RESERVED = 1000
_RUNS_MS = 10 * SECOND
_ARRIVE_MS = SECOND // 10
TOKENS_FOR = 3 * MINUTE


@dataclass(frozen=True, slots=True)
class Passed:
    """A request that was admitted: when, and how much it used in the end."""

    at_ms: int
    amount: int = 1


def _hourly(window: Window, *, burst: int = 0) -> Limit:
    seconds = HOUR // SECOND if window is Window.SLIDING else 0
    return Limit(name="requests", unit=Unit.REQUESTS, window=window, ceiling=CEILING, seconds=seconds, burst=burst)


REQUEST_LIMITS = {
    "calendar hour": _hourly(Window.CALENDAR_HOUR),
    "any 60 minutes": _hourly(Window.SLIDING),
    f"any 60 minutes, at most {BURST} at once": _hourly(Window.SLIDING, burst=BURST),
}
_TOKENS = Limit(name="tokens", unit=Unit.TOKENS, window=Window.SLIDING, ceiling=TOKEN_CEILING, seconds=60)
TOKEN_CHARGES = {"reserved before, settled after": RESERVED, "charged after the answer": 1}


def in_last(passed: list[Passed], now_ms: int, span_ms: int) -> int:
    """How much was admitted in the span that ends now."""
    return sum(each.amount for each in passed if now_ms - span_ms < each.at_ms <= now_ms)


def most_in_any(passed: list[Passed], span_ms: int) -> int:
    """The most that was admitted in any span of this length."""
    return max(in_last(passed, each.at_ms, span_ms) for each in passed)


@cache
def requests() -> dict[str, list[Passed]]:
    """The requests of the burst that pass under each kind of limit."""
    return {name: asyncio.run(_admitted(limit)) for name, limit in REQUEST_LIMITS.items()}


@cache
def answers() -> dict[str, list[Passed]]:
    """The answers that pass a token limit, by when they are charged."""
    return {name: asyncio.run(_answered(reserved)) for name, reserved in TOKEN_CHARGES.items()}


async def _admitted(limit: Limit) -> list[Passed]:
    clock = Clock()
    reservations, limits = MemoryReservations(clock.now_ms), held(limit)
    passed = []
    for number, at in enumerate(_arrivals()):
        clock.ms = MIDNIGHT_MS + at
        if isinstance(await reservations.reserve(claim(f"request-{number}", limits)), Reservation):
            passed.append(Passed(at))
    return passed


def _arrivals() -> Iterator[int]:
    return iter(heapq.merge(range(START, END, _STEADY_MS), range(BURST_FROM, BURST_TO, _BURST_MS)))


async def _answered(reserved: int) -> list[Passed]:
    clock = Clock()
    reservations, limits = MemoryReservations(clock.now_ms), held(_TOKENS)
    running: list[tuple[int, int]] = []
    passed = []
    for number, at in enumerate(range(0, TOKENS_FOR, _ARRIVE_MS)):
        while running and running[0][0] <= at:
            ends, ended = heapq.heappop(running)
            clock.ms = MIDNIGHT_MS + ends
            await reservations.settle(settlement(f"answer-{ended}", _counted(_used(ended))))
        clock.ms = MIDNIGHT_MS + at
        taken = await reservations.reserve(claim(f"answer-{number}", limits, _counted(reserved)))
        if isinstance(taken, Reservation):
            heapq.heappush(running, (at + _RUNS_MS, number))
            passed.append(Passed(at, _used(number)))
    return passed


def _used(number: int) -> int:
    """Tokens of the answer: between 600 and 1,000, in no pattern."""
    return 600 + number * 97 % 401


def _counted(tokens: int) -> Charges:
    return Charges(requests=1, tokens=tokens)
