"""What is a client told of its limits with every answer? Headers, made of the numbers of the script that decided.

Each dialect's SDKs know their own: OpenAI's `x-ratelimit-*`, Anthropic's `anthropic-ratelimit-*`. Beside them stand
`RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10, which alone name every limit. Envoy puts
them on the answer, by their names (envoy/envoy.yaml). Made for three limits in 6 to 8 µs.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

from authz.routes import Dialect
from extproc.rate_limit_policy import Policy, policy
from quota.applied import AppliedLimits
from quota.reservation import Standing

_MS = 1000
_MINUTE = _HOUR = 60

# What remains under a limit, minus the milliseconds until all of it is back, the ceiling as text: so ordered, the least
# of several of one unit is the one that refuses first, and of equals the one that is the last to come back.
_Left = tuple[int, int, str]


def told(
    limits: AppliedLimits, standings: Sequence[Standing], dialect: Dialect, now_ms: int, *, refused: bool = False
) -> list[tuple[str, str]]:
    """The headers of an answer. `standings` are in the order of the limits; without any, nothing is told.

    `now_ms` is milliseconds since the epoch. `refused` says that this answer is a refusal by one of the limits.
    """
    known = policy(limits)
    if not known.told or len(standings) != len(limits.limits):
        return []
    lefts: list[_Left] = []
    for one in known.told:
        standing = standings[one.index]
        room = one.limit.ceiling - standing.used
        lefts.append((max(0, min(room, one.most)), -standing.reset_ms, one.ceiling))
    if dialect is Dialect.ANTHROPIC_MESSAGES:
        found = _anthropic(known, lefts, now_ms)
        found += _unified(known, lefts, now_ms, refused=refused)
    else:
        found = _openai(known, lefts)
    found.append(("ratelimit-policy", known.text))
    found.append(("ratelimit", _service_limits(known, lefts, refused=refused)))
    return found


def _openai(known: Policy, lefts: Sequence[_Left]) -> list[tuple[str, str]]:
    found = []
    for group in known.openai:
        remaining, back, ceiling = min([lefts[place] for place in group.places])
        found.append((group.limit, ceiling))
        found.append((group.remaining, str(remaining)))
        found.append((group.reset, _duration(-back)))
    return found


def _anthropic(known: Policy, lefts: Sequence[_Left], now_ms: int) -> list[tuple[str, str]]:
    found = []
    for group in known.anthropic:
        remaining, back, ceiling = min([lefts[place] for place in group.places])
        found.append((group.limit, ceiling))
        found.append((group.remaining, str(remaining)))
        found.append((group.reset, _rfc_3339(_seconds(now_ms - back))))
    return found


def _unified(known: Policy, lefts: Sequence[_Left], now_ms: int, *, refused: bool) -> list[tuple[str, str]]:
    """By these Claude Code tells a limit from an overload; a 429 without them it tries again for ever.

    The statuses that it knows are allowed, allowed_warning and rejected, and the reset is in seconds since the epoch.
    """
    found = [("anthropic-ratelimit-unified-status", "rejected" if refused else "allowed")]
    # Of different units it is the share that counts. Slots have no reset.
    windows = [
        (left[0] / max(1, one.limit.ceiling), left[1])
        for one, left in zip(known.told, lefts, strict=True)
        if one.window
    ]
    if windows:
        found.append(("anthropic-ratelimit-unified-reset", str(_seconds(now_ms - min(windows)[1]))))
    return found


def _service_limits(known: Policy, lefts: Sequence[_Left], *, refused: bool) -> str:
    # A refusal says by Retry-After when there is room, which may be before all is back; it SHOULD NOT be earlier than
    # `t` (section 6), which is optional.
    return ", ".join(
        [
            f"{one.name};r={left[0]};t={_seconds(-left[1])}"
            if one.window and not refused
            else f"{one.name};r={left[0]}"
            for one, left in zip(known.told, lefts, strict=True)
        ]
    )


def _seconds(ms: int) -> int:
    return -(-ms // _MS)  # rounded up


def _duration(ms: int) -> str:
    """As OpenAI writes them, which is how Go does: `120ms`, `1s`, `6m0s`, `23h0m1s`. From a second on rounded up."""
    if ms < _MS:
        return f"{ms}ms"
    minutes, seconds = divmod(_seconds(ms), _MINUTE)
    if not minutes:
        return f"{seconds}s"
    hours, minutes = divmod(minutes, _HOUR)
    return f"{hours}h{minutes}m{seconds}s" if hours else f"{minutes}m{seconds}s"


@lru_cache(maxsize=4096)
def _rfc_3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
