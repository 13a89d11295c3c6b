"""Which limit does a person mean by `requests_per_minute=100,burst=20`, or by `tokens=5000/90s`?

requests_per_minute=10          the window is in the name: _per_minute and _per_hour slide, _per_calendar_hour,
tokens_per_day=1000000          _per_day and _per_month are the calendar's, in the tenant's time zone,
                                or in UTC where the tenants of an organization are counted together
tokens=5000/90s                 any length that slides, in s, m, h or d
cost_per_month=$25.50           dollars; without the sign, micro-dollars
concurrent_requests=5           as long as they run
...,burst=20,per=principal+model,route=/v1/embeddings,model=gpt-*,priority=5,mode=shadow,on_outage=local
"""

import re
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from quota.limit import Dimension, Limit, Mode, OnOutage, Unit, Window, limit_name
from sidecar.commands.fixed_point import dollars, micros
from store.field_error import FieldError
from store.limits import checked_limits

FIELD = "--limit"
_WHOLE = re.compile(r"[0-9]{1,16}")
_LENGTH = re.compile(r"(?P<count>[0-9]{1,7})(?P<span>[smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WINDOWS = {
    "minute": (Window.SLIDING, 60),
    "hour": (Window.SLIDING, 3600),
    "calendar_hour": (Window.CALENDAR_HOUR, 0),
    "day": (Window.CALENDAR_DAY, 0),
    "month": (Window.CALENDAR_MONTH, 0),
}
_SHOWN = 80
E = TypeVar("E", bound=StrEnum)

Limits = Annotated[
    list[str] | None,
    typer.Option(
        FIELD,
        metavar="LIMIT",
        help="A limit, may be repeated: requests_per_minute=10, tokens_per_day=1000000, requests=100/3600s, "
        "concurrent_requests=5, 'cost_per_month=$25.50' (quoted, for the shell takes $ for its own). Behind it, parted "
        "by commas: burst=N, per=principal+model, route=PATH, model=gpt-*, priority=0 to 9, mode=shadow, "
        "on_outage=open or local.",
    ),
]


def parse_limit(text: str) -> Limit:
    """Read one limit; raises `FieldError` when it is none."""
    try:
        head, *options = text.split(",")
        limit = _kind(head)
        return msgspec.structs.replace(limit, **_chosen(limit.unit, options))
    except ValueError as error:
        raise FieldError(FIELD, f"{text[:_SHOWN]!r}: {error}") from None


def parse_limits(texts: Iterable[str], carrier: Dimension = Dimension.TENANT) -> tuple[Limit, ...]:
    """Read the values of a repeated `--limit` for who is to carry them; raises `FieldError` for the first wrong one."""
    return checked_limits(FIELD, map(parse_limit, texts), carrier)


def written(limit: Limit) -> str:
    """Write a limit in a form that `parse_limit` reads."""
    return ",".join((f"{_left(limit)}={_amount(limit, limit.ceiling)}{_length(limit)}", *_options(limit)))


def field(limit: Limit) -> tuple[str, str]:
    """A limit as a field of who carries it, for a person: its name, and the rest."""
    ceiling = dollars(limit.ceiling) if limit.unit is Unit.COST else f"{limit.ceiling:,}"
    return limit.name, ", ".join((ceiling, *_options(limit)))


def _kind(head: str) -> Limit:
    """The limit without options; `ValueError` says what is wrong with it."""
    name, equals, amount = head.partition("=")
    ceiling, slash, length = amount.partition("/")
    if not equals:
        raise ValueError("it has no ceiling, as in requests_per_minute=10")
    unit, window, seconds = _measure(name, length if slash else None)
    number = _number("ceiling", unit, ceiling)
    return Limit(name=limit_name(unit, window, seconds), unit=unit, window=window, seconds=seconds, ceiling=number)


def _measure(name: str, length: str | None) -> tuple[Unit, Window, int]:
    counted, per, span = name.partition("_per_")
    unit = _one_of(Unit, "unit", counted)
    if unit is Unit.CONCURRENT_REQUESTS:
        if per or length is not None:
            raise ValueError("concurrent_requests has no window: they count as long as they run")
        return unit, Window.LEASE, 0
    if not per:
        return unit, Window.SLIDING, _seconds(unit, length)
    if length is not None:
        raise ValueError(f"{name} says its window already: leave out /{length[:_SHOWN]}, or the _per_")
    if span not in _WINDOWS:
        raise ValueError(f"there is no window _per_{span[:_SHOWN]}; there are: _per_{', _per_'.join(_WINDOWS)}")
    return unit, *_WINDOWS[span]


def _seconds(unit: Unit, length: str | None) -> int:
    if length is None:
        raise ValueError(f"{unit} needs a window, as in {unit}_per_minute=10 or {unit}=10/90s")
    found = _LENGTH.fullmatch(length)
    if found is None:
        raise ValueError(f"the length of the window, {length[:_SHOWN]!r}, is not like 90s, 5m, 12h or 7d")
    return int(found["count"]) * _SECONDS[found["span"]]


def _number(what: str, unit: Unit, text: str) -> int:
    if unit is Unit.COST and text.startswith("$"):
        amount = micros(text)
        if amount is None:
            raise ValueError(f"the {what}, {text[:_SHOWN]!r}, is not like $25 or $25.50, with at most 6 places")
        return amount
    if not _WHOLE.fullmatch(text):
        money = ", in micro-dollars, or like $25.50" if unit is Unit.COST else ""
        raise ValueError(f"the {what}, {text[:_SHOWN]!r}, is no whole number{money}")
    return int(text)


def _chosen(unit: Unit, options: Iterable[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in _READERS:
            raise ValueError(f"there is no option {option[:_SHOWN]!r}; there are: {'=, '.join(_READERS)}=")
        if not value:
            raise ValueError(f"{name} has no value")
        if name in chosen:
            raise ValueError(f"{name} is given more than once")
        chosen[name] = _READERS[name](unit, value)
    return chosen


def _per(_: Unit, text: str) -> tuple[Dimension, ...]:
    return tuple(_one_of(Dimension, "per", name) for name in text.split("+"))


def _burst(unit: Unit, text: str) -> int:
    number = _number("burst", unit, text)
    if not number:
        raise ValueError("burst: at least 1; leave it out for none")
    return number


def _one_of(kind: type[E], what: str, text: str) -> E:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{what}: there is no {text[:_SHOWN]!r}; there are: {', '.join(kind)}") from None


_READERS: dict[str, Callable[[Unit, str], Any]] = {
    "burst": _burst,
    "per": _per,
    "route": lambda _, text: text,
    "model": lambda _, text: text,
    "priority": lambda _, text: _number("priority", Unit.REQUESTS, text),
    "mode": lambda _, text: _one_of(Mode, "mode", text),
    "on_outage": lambda _, text: _one_of(OnOutage, "on_outage", text),
}


def _left(limit: Limit) -> str:
    return limit.unit.value if _length(limit) else limit.name


def _length(limit: Limit) -> str:
    named = limit.window is not Window.SLIDING or (limit.window, limit.seconds) in _WINDOWS.values()
    return "" if named else f"/{limit.seconds}s"


def _amount(limit: Limit, number: int) -> str:
    return dollars(number) if limit.unit is Unit.COST else str(number)


def _options(limit: Limit) -> Iterator[str]:
    """The options of a limit that are not what they are when nothing is said."""
    told = {
        "burst": _amount(limit, limit.burst) if limit.burst else "",
        "per": "+".join(limit.per),
        "route": limit.route,
        "model": limit.model,
        "priority": str(limit.priority) if limit.priority else "",
        "mode": "" if limit.mode is Mode.ENFORCE else limit.mode.value,
        "on_outage": "" if limit.on_outage is OnOutage.CLOSED else limit.on_outage.value,
    }
    return (f"{name}={text}" for name, text in told.items() if text)
