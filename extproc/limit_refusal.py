"""What is a caller told whose request a limit refuses? A pure reading of the store's answer."""

from typing import Any

from authz.refusal import Reason, Refusal
from quota.applied import AppliedLimit, counted_per
from quota.limit import CALENDAR, Dimension, Limit, Unit, Window
from quota.reservation import Exceeded

# SDKs that know this header do not try again by themselves: a budget does not come back in seconds.
_NOT_WORTH_RETRYING = ("x-should-retry", "false")
_MICROS = 1_000_000
_BUDGETS = frozenset({Window.CALENDAR_DAY, Window.CALENDAR_MONTH})


def refusal(exceeded: Exceeded, *, time_zone: str, headers: tuple[tuple[str, str], ...] = ()) -> Refusal:
    """The refusal of a request. `time_zone` is what the limit goes by, `headers` say how all stand."""
    limit = exceeded.limit.limit
    details = _details(exceeded, time_zone)
    if exceeded.retry_after_ms is None:
        return Refusal(
            reason=Reason.EXCEEDS_LIMIT,
            message=_never(limit),
            details={**details, "demanded": exceeded.demanded},
            headers=headers,
        )
    if _is_budget(limit):
        return Refusal(
            reason=Reason.INSUFFICIENT_QUOTA,
            message=f"The budget '{limit.name}' of {_told(limit, limit.ceiling)} has no room for this request.",
            details=details,
            retry_after_ms=exceeded.retry_after_ms,
            headers=(*headers, _NOT_WORTH_RETRYING),
        )
    return Refusal(
        reason=Reason.RATE_LIMIT_EXCEEDED,
        message=_no_room(exceeded),
        details=details,
        retry_after_ms=exceeded.retry_after_ms,
        headers=headers,
    )


def is_for_want_of_a_slot(exceeded: Exceeded) -> bool:
    """Whether a running request that ends gives the room back."""
    return exceeded.limit.limit.unit is Unit.CONCURRENT_REQUESTS and exceeded.retry_after_ms is not None


def _is_budget(limit: Limit) -> bool:
    return limit.window in _BUDGETS or limit.unit is Unit.COST


def _no_room(exceeded: Exceeded) -> str:
    limit = exceeded.limit.limit
    if limit.burst and exceeded.used + exceeded.demanded <= limit.ceiling:
        return f"The burst of {limit.burst} of the limit '{limit.name}' is used up; room comes back evenly."
    return f"The limit '{limit.name}' of {limit.ceiling} is exceeded."


def _never(limit: Limit) -> str:
    if not limit.ceiling:
        return f"The limit '{limit.name}' is 0: no request passes."
    if limit.burst and limit.burst < limit.ceiling:
        return (
            f"This request alone is larger than the burst of {_told(limit, limit.burst)} of the limit '{limit.name}'."
        )
    return f"This request alone is larger than the limit '{limit.name}' of {_told(limit, limit.ceiling)}."


def _told(limit: Limit, amount: int) -> str:
    """An amount as people say it: money in dollars."""
    if limit.unit is not Unit.COST:
        return str(amount)
    whole, micros = divmod(amount, _MICROS)
    places = f"{micros:06}".rstrip("0").ljust(2, "0")
    return f"${whole}.{places}"


def _details(exceeded: Exceeded, time_zone: str) -> dict[str, Any]:
    limit = exceeded.limit.limit
    details: dict[str, Any] = {
        "limit": limit.name,
        "per": _scope(exceeded.limit),
        "unit": limit.unit.value,
        "ceiling": limit.ceiling,
        "used": exceeded.used,
        "window": limit.window.value,
    }
    if limit.burst:
        details["burst"] = limit.burst
    if limit.window is Window.SLIDING:
        details["seconds"] = limit.seconds
    elif limit.window in CALENDAR:
        details["time_zone"] = time_zone
    return details | {name: value for name in ("route", "model") if (value := getattr(limit, name))}


def _scope(applied: AppliedLimit) -> str:
    """What the limit is counted apart for: `tenant`, `tenant,model`."""
    # A subject begins with its owner.
    owner = Dimension(applied.subject.partition(":")[0])
    return ",".join(counted_per(applied.limit, owner))
