"""Which moment does a person mean by `7d`, or by `2026-01-31`?"""

import re
from datetime import UTC, datetime, timedelta

from store.field_error import FieldError

_SPAN = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[smhdw])")
_UNITS = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


def ago(field: str, text: str, *, now: datetime) -> datetime:
    """Read a span before now, or a date or time in ISO 8601 (UTC unless it says otherwise)."""
    return _read(field, text, now=now, sign=-1)


def ahead(field: str, text: str, *, now: datetime) -> datetime:
    """Read a span from now on, or a date or time in ISO 8601; it must lie in the future."""
    moment = _read(field, text, now=now, sign=1)
    if moment <= now:
        raise FieldError(field, f"{text!r} is not in the future")
    return moment


def _read(field: str, text: str, *, now: datetime, sign: int) -> datetime:
    span = _SPAN.fullmatch(text)
    try:
        if span is not None:
            return now + sign * int(span["count"]) * _UNITS[span["unit"]]
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise FieldError(
            field, f"{text!r} is neither a span like 30d, 12h or 5m, nor a time like 2026-01-31T12:00Z"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
