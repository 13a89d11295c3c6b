"""Which limit does a person mean by `requests_per_minute=10`, or by `tokens=5000/90s`?

The left side is `requests_per_minute`, `requests_per_hour`, `requests_per_day`, the same of `tokens`, or
`concurrent_requests`; or only `requests` or `tokens`, and then the right side ends in the length of the window.
A day without a length is a calendar day in UTC, `/1d` is any 24 hours.
"""

import re
from collections.abc import Iterable
from typing import Annotated

import typer

from quota.limit import Limit, Unit, Window
from store.field_error import FieldError
from store.limits import checked_limits, limit_name

FIELD = "--limit"
_CEILING = r"=(?P<ceiling>[0-9]{1,16})"
_CONCURRENT = re.compile(rf"concurrent_requests{_CEILING}")
_DAILY = re.compile(rf"(?P<unit>requests|tokens)_per_day{_CEILING}")
_NAMED = re.compile(rf"(?P<unit>requests|tokens)_per_(?P<span>minute|hour){_CEILING}")
_MEASURED = re.compile(rf"(?P<unit>requests|tokens){_CEILING}/(?P<count>[0-9]{{1,7}})(?P<span>[smhd])")
_SECONDS = {"minute": 60, "hour": 3600, "s": 1, "m": 60, "h": 3600, "d": 86_400}

Limits = Annotated[
    list[str] | None,
    typer.Option(
        FIELD,
        metavar="LIMIT",
        help="A limit, may be repeated: requests_per_minute=10, tokens_per_day=1000000, requests=100/3600s, "
        "concurrent_requests=5.",
    ),
]


def parse_limit(text: str) -> Limit:
    """Read one limit; raises `FieldError` when it is none."""
    if found := _CONCURRENT.fullmatch(text):
        return _limit(Unit.CONCURRENT_REQUESTS, Window.LEASE, found["ceiling"])
    if found := _DAILY.fullmatch(text):
        return _limit(Unit(found["unit"]), Window.CALENDAR_DAY, found["ceiling"])
    if found := _NAMED.fullmatch(text):
        return _limit(Unit(found["unit"]), Window.SLIDING, found["ceiling"], seconds=_SECONDS[found["span"]])
    if found := _MEASURED.fullmatch(text):
        seconds = int(found["count"]) * _SECONDS[found["span"]]
        return _limit(Unit(found["unit"]), Window.SLIDING, found["ceiling"], seconds=seconds)
    raise FieldError(
        FIELD, f"{text[:80]!r} is not like requests_per_minute=10, requests=100/3600s or concurrent_requests=5"
    )


def parse_limits(texts: Iterable[str]) -> tuple[Limit, ...]:
    """Read the values of a repeated `--limit`; raises `FieldError` for the first that is wrong."""
    return checked_limits(FIELD, map(parse_limit, texts))


def written(limit: Limit) -> str:
    """Write a limit in a form that `parse_limit` reads."""
    if limit.window is Window.SLIDING and limit.seconds not in (60, 3600):
        return f"{limit.unit}={limit.ceiling}/{limit.seconds}s"
    return f"{limit.name}={limit.ceiling}"


def _limit(unit: Unit, window: Window, ceiling: str, *, seconds: int = 0) -> Limit:
    name = limit_name(unit, window, seconds)
    return Limit(name=name, unit=unit, window=window, ceiling=int(ceiling), seconds=seconds)
