"""Which limits can be set, and which hold for a tenant that has some of its own beside its plan's?"""

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

import msgspec

from authz.routes import LIMITED_PATHS
from quota import model_pattern
from quota.applied import counted_per
from quota.limit import OWNERS, Dimension, Limit, Unit, Window, limit_name
from store.field_error import FieldError

# Redis counts in doubles, exact up to 2^53; what is held together may be a little more than a ceiling.
MAX_CEILING = 10**15
MAX_SECONDS = 31 * 86_400
MAX_PRIORITY = 9
# With a burst, Redis counts units times the milliseconds of the window.
_EXACT = 2**53
_LIMITS = msgspec.json.Decoder(tuple[Limit, ...])

Identity: TypeAlias = tuple[str, tuple[Dimension, ...], str, str]


@lru_cache(maxsize=1000)
def decode_limits(text: str) -> tuple[Limit, ...]:
    """Read a column of limits; `msgspec.MsgspecError` when it is not a list of limits."""
    return _LIMITS.decode(text)


def encode_limits(limits: Iterable[Limit]) -> str:
    """The limits as the text of their column."""
    return msgspec.json.encode(tuple(limits)).decode()


def identity(limit: Limit, carrier: Dimension = Dimension.TENANT) -> Identity:
    """What a limit counts: of two with the same, carried by the same, one would be meaningless."""
    return limit.name, counted_per(limit, carrier), limit.route, limit.model


def checked_limits(field: str, limits: Iterable[Limit], carrier: Dimension = Dimension.TENANT) -> tuple[Limit, ...]:
    """Return the limits that a `carrier` (organization, tenant, principal; a plan's are its tenants') is to have.

    `per` comes back from the widest to the narrowest. Raises `FieldError` when a limit makes no sense or two count the
    same.
    """
    checked = tuple(limits)
    seen: set[Identity] = set()
    for limit in checked:
        if reason := _fault(limit) or _owner_fault(limit, carrier):
            raise FieldError(field, reason)
        if (known := identity(limit, carrier)) in seen:
            raise FieldError(field, f"{_told(limit)} is given more than once")
        seen.add(known)
    return tuple(msgspec.structs.replace(limit, per=_ordered(limit.per)) for limit in checked)


def effective_limits(plan: Iterable[Limit], own: Iterable[Limit]) -> tuple[Limit, ...]:
    """The plan's limits with a tenant's own ones in place of those that count the same, or beside them."""
    replacing = {identity(limit): limit for limit in own}
    kept = tuple(limit for limit in plan if identity(limit) not in replacing)
    return (*kept, *replacing.values())


def _fault(limit: Limit) -> str | None:
    checks = (_kind_fault, _ceiling_fault, _burst_fault, _scope_fault)
    return next((reason for check in checks if (reason := check(limit))), None)


def _kind_fault(limit: Limit) -> str | None:
    if (limit.unit is Unit.CONCURRENT_REQUESTS) is not (limit.window is Window.LEASE):
        return "concurrent requests, and nothing else, are counted as long as they run"
    if limit.window is Window.SLIDING and not 1 <= limit.seconds <= MAX_SECONDS:
        return f"{limit.name} needs the length of its window, 1 to {MAX_SECONDS:,} seconds"
    # Redis keeps what is held under the name: it must say unit and window, or a change would mix two ways of counting.
    if limit.name != (name := limit_name(limit.unit, limit.window, limit.seconds)):
        return f"this limit is called {name}, not {limit.name[:80]!r}"
    return None


def _ceiling_fault(limit: Limit) -> str | None:
    if not 0 <= limit.ceiling <= MAX_CEILING:
        return f"the ceiling of {limit.name} must be from 0 to {MAX_CEILING:,}"
    if not 0 <= limit.priority <= MAX_PRIORITY:
        return f"the priority of {limit.name} must be from 0 to {MAX_PRIORITY}"
    return None


def _burst_fault(limit: Limit) -> str | None:
    if limit.burst == 0:
        return None
    if limit.window is not Window.SLIDING:
        return f"{limit.name} cannot have a burst: only a window that slides, such as requests_per_minute, can"
    if not 1 <= limit.burst <= limit.ceiling:
        return f"the burst of {limit.name} must be from 1 to its ceiling, {limit.ceiling:,}"
    if limit.ceiling * limit.window_ms >= _EXACT:
        most = (_EXACT - 1) // limit.window_ms
        return f"with a burst, the ceiling of {limit.name} may be at most {most:,}"
    return None


def _scope_fault(limit: Limit) -> str | None:
    if len(set(limit.per)) != len(limit.per):
        return f"{limit.name} names something twice that it is to be counted per: {'+'.join(limit.per)}"
    if len(OWNERS.intersection(limit.per)) > 1:
        return f"{limit.name} is counted per {'+'.join(limit.per)}: only one of {', '.join(_ordered(OWNERS))} can be"
    if limit.route and limit.route not in LIMITED_PATHS:
        return f"there is no route {limit.route[:80]!r} with limits; there are: {', '.join(LIMITED_PATHS)}"
    if limit.model:
        try:
            model_pattern.parse(limit.model)
        except ValueError as error:
            return str(error)
    return None


def _owner_fault(limit: Limit, carrier: Dimension) -> str | None:
    wider = OWNERS.intersection(limit.per) - {Dimension.PRINCIPAL}
    if carrier is Dimension.PRINCIPAL and wider:
        return f"{limit.name} is one principal's own: it cannot be counted per {', '.join(_ordered(wider))}"
    return None


def _ordered(dimensions: Iterable[Dimension]) -> tuple[Dimension, ...]:
    """From the widest to the narrowest."""
    known = set(dimensions)
    return tuple(dimension for dimension in Dimension if dimension in known)


def _told(limit: Limit) -> str:
    per = f"per {'+'.join(limit.per)}" if limit.per else ""
    return " ".join(filter(None, (limit.name, per, limit.route, limit.model)))
