"""Which limits can be set, and which hold for a tenant that has some of its own beside its plan's?"""

from collections.abc import Iterable
from functools import lru_cache

import msgspec

from quota.limit import Limit, Unit, Window
from store.field_error import FieldError

# Redis counts in doubles, exact up to 2^53; what is held together may be a little more than a ceiling.
MAX_CEILING = 10**15
MAX_SECONDS = 31 * 86_400
_SPANS = {60: "minute", 3600: "hour"}
_LIMITS = msgspec.json.Decoder(tuple[Limit, ...])


@lru_cache(maxsize=1000)
def decode_limits(text: str) -> tuple[Limit, ...]:
    """Read a column of limits; `msgspec.MsgspecError` when it is not a list of limits."""
    return _LIMITS.decode(text)


def encode_limits(limits: Iterable[Limit]) -> str:
    """The limits as the text of their column."""
    return msgspec.json.encode(tuple(limits)).decode()


def limit_name(unit: Unit, window: Window, seconds: int = 0) -> str:
    """What a limit of this kind is called: `requests_per_minute`, `tokens_per_day`, `requests_per_90s`.

    A day of 86,400 seconds that may begin at any moment is `..._per_86400s`.
    """
    match window:
        case Window.LEASE:
            return unit.value
        case Window.CALENDAR_DAY:
            return f"{unit}_per_day"
        case Window.SLIDING:
            return f"{unit}_per_{_SPANS.get(seconds, f'{seconds}s')}"


def checked_limits(field: str, limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Return the limits; raises `FieldError` when one makes no sense or two have the same name."""
    checked = tuple(limits)
    for limit in checked:
        if reason := _fault(limit):
            raise FieldError(field, reason)
    names = [limit.name for limit in checked]
    for name in names:
        if names.count(name) > 1:
            raise FieldError(field, f"{name} is given more than once")
    return checked


def effective_limits(plan: Iterable[Limit], own: Iterable[Limit]) -> tuple[Limit, ...]:
    """The plan's limits with the own ones in place of those of the same name, or beside them."""
    replacing = {limit.name: limit for limit in own}
    kept = tuple(limit for limit in plan if limit.name not in replacing)
    return (*kept, *replacing.values())


def _fault(limit: Limit) -> str | None:
    if (limit.unit is Unit.CONCURRENT_REQUESTS) is not (limit.window is Window.LEASE):
        return "concurrent requests, and nothing else, are counted as long as they run"
    if limit.window is Window.SLIDING and not 1 <= limit.seconds <= MAX_SECONDS:
        return f"{limit.name} needs the length of its window, 1 to {MAX_SECONDS:,} seconds"
    # Redis keeps what is held under the name: it must say unit and window, or a change would mix two ways of counting.
    if limit.name != (name := limit_name(limit.unit, limit.window, limit.seconds)):
        return f"this limit is called {name}, not {limit.name[:80]!r}"
    if not 0 <= limit.ceiling <= MAX_CEILING:
        return f"the ceiling of {limit.name} must be from 0 to {MAX_CEILING:,}"
    return None
