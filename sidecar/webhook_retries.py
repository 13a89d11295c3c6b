"""What follows from an endpoint's answer? It has arrived, is tried again later, is given up, or nobody is there."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

DELAYS = (
    *(timedelta(seconds=5), timedelta(seconds=30)),
    *(timedelta(minutes=2), timedelta(minutes=10), timedelta(minutes=30)),
    *(timedelta(hours=1), timedelta(hours=3), timedelta(hours=6), timedelta(hours=12)),
)
"""How long after each failed attempt comes the next; ten in all, over about 23 hours."""
LONGEST_DELAY = timedelta(hours=12)
"""At most so long does an endpoint put the next attempt off."""
# Deliveries that failed together are not tried again together.
_JITTER = 0.2
_GONE = 410
_SUCCESSES = range(200, 300)

Random = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of an attempt. `status` is None without an answer; then `error` says why in a few words."""

    status: int | None = None
    error: str = ""
    retry_after: str = ""
    """The header of this name (RFC 9110 section 10.2.3)."""
    hopeless: bool = False
    """Whether another attempt could do no better."""


class Fate(StrEnum):
    """What becomes of a delivery."""

    DELIVERED = "delivered"
    RETRIED = "retried"
    DEAD = "dead"
    DISABLED = "disabled"  # with its webhook


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of it, and when it is tried again: None, but for `RETRIED`."""

    fate: Fate
    next_at: datetime | None = None


def decide(answer: Answer, *, attempts: int, now: datetime, random: Random) -> Decision:
    """Decide after so many attempts. `random` gives numbers from 0 to 1, 1 excluded."""
    if answer.status in _SUCCESSES:
        return Decision(Fate.DELIVERED)
    if answer.status == _GONE:
        return Decision(Fate.DISABLED)
    if answer.hopeless or attempts > len(DELAYS):
        return Decision(Fate.DEAD)
    delay = DELAYS[attempts - 1] * (1 - _JITTER + 2 * _JITTER * random())
    return Decision(Fate.RETRIED, now + max(delay, _asked_for(answer.retry_after, now)))


def _asked_for(retry_after: str, now: datetime) -> timedelta:
    """How long the endpoint wants to be left alone; 0 when it does not say so in a way that can be read."""
    if retry_after.isascii() and retry_after.isdigit():
        return min(timedelta(seconds=int(retry_after[:9])), LONGEST_DELAY)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return timedelta(0)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(aware - now, timedelta(0)), LONGEST_DELAY)
