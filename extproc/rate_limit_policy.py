"""Which of its limits is a client told, under which names? What stays the same for all answers under the same limits.

The names and the policy are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from quota.applied import AppliedLimit, AppliedLimits
from quota.limit import Dimension, Limit, Unit, Window

_HOUR, _DAY = 3600, 86_400
# A month is told at its longest: who spreads the quota over it never goes too fast.
_WINDOW_SECONDS = {Window.CALENDAR_HOUR: _HOUR, Window.CALENDAR_DAY: _DAY, Window.CALENDAR_MONTH: 31 * _DAY}
# The draft knows requests, its default, and concurrent requests. A unit outside its registry is no value of `qu`, but
# any parameter with a vendor's prefix is allowed and read as a comment (section 3.1).
_UNITS = {
    Unit.REQUESTS: "",
    Unit.CONCURRENT_REQUESTS: ';qu="concurrent-requests"',
    Unit.TOKENS: ';igw-unit="tokens"',
    Unit.INPUT_TOKENS: ';igw-unit="input-tokens"',
    Unit.OUTPUT_TOKENS: ';igw-unit="output-tokens"',
    Unit.COST: ';igw-unit="microdollars"',
}
_OPENAI = "x-ratelimit-limit-{0}", "x-ratelimit-remaining-{0}", "x-ratelimit-reset-{0}"
_ANTHROPIC = "anthropic-ratelimit-{0}-limit", "anthropic-ratelimit-{0}-remaining", "anthropic-ratelimit-{0}-reset"
_DIMENSIONS = frozenset(dimension.value for dimension in Dimension)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A limit that is told. `index` is its place among all, `most` what it takes at once, `window` whether it has one.

    `name` and `ceiling` are as they are written.
    """

    index: int
    limit: Limit
    name: str
    ceiling: str
    most: int
    window: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Three headers that tell of one limit, the tightest at these places among those that are told."""

    limit: str
    remaining: str
    reset: str
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is told under the same limits, but for the numbers. `text` is that of RateLimit-Policy."""

    told: tuple[Told, ...]
    text: str
    openai: tuple[Group, ...]
    anthropic: tuple[Group, ...]


# A principal's limits stay the same object for many requests.
@lru_cache(maxsize=10_000)
def policy(limits: AppliedLimits) -> Policy:
    """The policy of the limits that are enforced: one in shadow mode refuses nobody, and is not told."""
    told = _told(limits)
    places = {unit: tuple(at for at, one in enumerate(told) if one.limit.unit is unit) for unit in Unit}
    # OpenAI's one pair of tokens is their sum; without a limit of the sum, that of either side.
    tokens = places[Unit.TOKENS] or places[Unit.INPUT_TOKENS] + places[Unit.OUTPUT_TOKENS]
    return Policy(
        told=told,
        text=", ".join(_item(one) for one in told),
        openai=_groups(_OPENAI, {"requests": places[Unit.REQUESTS], "tokens": tokens}),
        anthropic=_groups(
            _ANTHROPIC,
            {
                "requests": places[Unit.REQUESTS],
                "tokens": places[Unit.TOKENS],
                "input-tokens": places[Unit.INPUT_TOKENS],
                "output-tokens": places[Unit.OUTPUT_TOKENS],
            },
        ),
    )


def _told(limits: AppliedLimits) -> tuple[Told, ...]:
    enforced = [(index, one) for index, one in enumerate(limits.limits) if one.limit.enforced]
    names = _names([one for _, one in enforced])
    return tuple(
        Told(
            index=index,
            limit=one.limit,
            name=_quoted(name),
            ceiling=str(one.limit.ceiling),
            most=one.limit.burst or one.limit.ceiling,
            window=one.limit.window is not Window.LEASE,
        )
        for (index, one), name in zip(enforced, names, strict=True)
    )


def _groups(headers: tuple[str, str, str], units: dict[str, tuple[int, ...]]) -> tuple[Group, ...]:
    found = []
    for unit, places in units.items():
        limit, remaining, reset = (header.format(unit) for header in headers)
        if places:
            found.append(Group(limit=limit, remaining=remaining, reset=reset, places=places))
    return tuple(found)


def _item(one: Told) -> str:
    window = f";w={_window_seconds(one.limit)}" if one.window else ""
    return f"{one.name};q={one.ceiling}{_UNITS[one.limit.unit]}{window}"


def _window_seconds(limit: Limit) -> int:
    return limit.seconds if limit.window is Window.SLIDING else _WINDOW_SECONDS[limit.window]


def _names(limits: Sequence[AppliedLimit]) -> list[str]:
    """A name for each: the limit's own, with whose it is in front where several have the same."""
    plain = Counter(one.limit.name for one in limits)
    names = [one.limit.name if plain[one.limit.name] == 1 else f"{_whose(one)}/{one.limit.name}" for one in limits]
    # Two may be of one tenant and yet of different models.
    seen: Counter[str] = Counter()
    for at, name in enumerate(names):
        seen[name] += 1
        if seen[name] > 1:
            names[at] = f"{name}#{seen[name]}"
    return names


def _whose(one: AppliedLimit) -> str:
    """The dimensions of a counter, without their values: nobody's ids are told."""
    kinds = []
    for part in one.subject.split(","):
        kind = part.partition(":")[0]
        if kind in _DIMENSIONS:
            kinds.append(kind)
        if kind == Dimension.MODEL:  # comes last, and is the caller's own text
            break
    return "+".join(kinds)


def _quoted(text: str) -> str:
    """A String of structured fields (RFC 9651 section 3.3.3): printable ASCII, quotes and backslashes escaped."""
    printable = "".join(char if " " <= char <= "~" else "?" for char in text)
    return '"' + printable.replace("\\", "\\\\").replace('"', '\\"') + '"'
