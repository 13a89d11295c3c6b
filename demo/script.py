"""How does a request ask the Router to behave? By `x-demo-*` headers, read here into one frozen value."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from demo.encoding import Encoding, read_encoding

PREFIX = "x-demo-"
MAX_EVENTS = 1_000_000
MAX_PADDING = 1 << 20
MAX_WAIT_MS = 600_000.0


class Fault(StrEnum):
    """The ways in which an upstream can misbehave on purpose."""

    RESET_BEFORE_HEADERS = "reset-before-headers"
    CLOSE_BEFORE_HEADERS = "close-before-headers"
    RESET_MID_STREAM = "reset-mid-stream"
    CLOSE_MID_STREAM = "close-mid-stream"
    HANG = "hang"
    STALL_MID_STREAM = "stall-mid-stream"
    ENDLESS = "endless"


class Terminal(StrEnum):
    """How an answer of the Responses API ends, when not well."""

    INCOMPLETE = "incomplete"
    FAILED = "failed"


class Place(StrEnum):
    """Where a stream says what the Router decided and what it cost, when not in headers."""

    COMMENT = "comment"


BEFORE_HEADERS = frozenset({Fault.RESET_BEFORE_HEADERS, Fault.CLOSE_BEFORE_HEADERS, Fault.HANG})
MID_STREAM = frozenset({Fault.RESET_MID_STREAM, Fault.CLOSE_MID_STREAM, Fault.STALL_MID_STREAM})
RESETS = frozenset({Fault.RESET_BEFORE_HEADERS, Fault.RESET_MID_STREAM})
CLOSES = frozenset({Fault.CLOSE_BEFORE_HEADERS, Fault.CLOSE_MID_STREAM})


@dataclass(frozen=True, slots=True)
class UsageRule:
    """Whether usage is reported at all, and the numbers to claim instead of the counted ones."""

    reported: bool = True
    numbers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything a request may steer; `None` leaves the choice to the server or to the body.

    Of the tokens in, `cached` are said to come from a cache and `cache_written` to have gone into one; of the tokens
    out, `reasoning` were never shown. `own_limit` is the ceiling that the Router says it has itself. `decision` and
    `cost` are told as they are, JSON or not. So many `pings` stand in a stream: one in front of each event that follows
    the first, until there are enough.
    """

    events: int | None = None
    interval_ms: float | None = None
    delay_ms: float = 0.0
    status: int | None = None
    padding: int = 0
    split: int | None = None
    batch: int = 1
    usage: UsageRule = UsageRule()
    cached: int | None = None
    cache_written: int | None = None
    reasoning: int | None = None
    own_limit: int | None = None
    fault: Fault | None = None
    terminal: Terminal | None = None
    encoding: Encoding | None = None
    decision: str | None = None
    cost: str | None = None
    words: Place | None = None
    pings: int = 0


@dataclass(frozen=True, slots=True)
class BadHeader:
    """A steering header that cannot be followed, and what it should have been."""

    name: str
    wants: str


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(text)
        return number

    return read


def _wait(text: str) -> float:
    number = float(text)
    if not (isfinite(number) and 0 <= number <= MAX_WAIT_MS):
        raise ValueError(text)
    return number


def _usage(text: str) -> UsageRule:
    if text == "none":
        return UsageRule(reported=False)
    if text == "zero":
        return UsageRule(numbers=(0, 0))
    prompt, completion = (_count(part) for part in text.split(","))
    return UsageRule(numbers=(prompt, completion))


_count = _whole(0, 2**53)
_COUNT_WANTS = f"a number from 0 to {2**53}"
_WAIT_WANTS = f"milliseconds from 0 to {MAX_WAIT_MS:.0f}"

_READERS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "x-demo-events": ("events", _whole(0, MAX_EVENTS), f"a number from 0 to {MAX_EVENTS}"),
    "x-demo-interval-ms": ("interval_ms", _wait, _WAIT_WANTS),
    "x-demo-delay-ms": ("delay_ms", _wait, _WAIT_WANTS),
    "x-demo-status": ("status", _whole(200, 599), "a status from 200 to 599"),
    "x-demo-padding": ("padding", _whole(0, MAX_PADDING), f"bytes from 0 to {MAX_PADDING}"),
    "x-demo-split": ("split", _whole(1, MAX_PADDING), f"bytes from 1 to {MAX_PADDING}"),
    "x-demo-batch": ("batch", _whole(1, MAX_EVENTS), f"a number from 1 to {MAX_EVENTS}"),
    "x-demo-usage": ("usage", _usage, "none, zero, or two numbers P,C"),
    "x-demo-cached-tokens": ("cached", _count, _COUNT_WANTS),
    "x-demo-cache-written-tokens": ("cache_written", _count, _COUNT_WANTS),
    "x-demo-reasoning-tokens": ("reasoning", _count, _COUNT_WANTS),
    "x-demo-own-limit": ("own_limit", _count, _COUNT_WANTS),
    "x-demo-fault": ("fault", Fault, "one of " + ", ".join(Fault)),
    "x-demo-terminal": ("terminal", Terminal, "one of " + ", ".join(Terminal)),
    "x-demo-encoding": ("encoding", read_encoding, "one of " + ", ".join(Encoding) + ", and installed"),
    "x-demo-decision": ("decision", str, "a text"),
    "x-demo-cost": ("cost", str, "a text"),
    "x-demo-words": ("words", Place, "one of " + ", ".join(Place)),
    "x-demo-pings": ("pings", _whole(0, MAX_EVENTS), f"a number from 0 to {MAX_EVENTS}"),
}

_UNSTEERED = Script()


def read_script(headers: Iterable[tuple[str, str]]) -> Script | BadHeader:
    """Read the steering headers; an unknown one is refused too, for a typo would pass for a green test."""
    fields: dict[str, Any] = {}
    for raw_name, value in headers:
        name = raw_name.lower()
        if not name.startswith(PREFIX):
            continue
        if name not in _READERS:
            return BadHeader(name, "one of " + ", ".join(_READERS))
        field, reader, wants = _READERS[name]
        try:
            fields[field] = reader(value)
        except ValueError:
            return BadHeader(name, wants)
    return Script(**fields) if fields else _UNSTEERED
