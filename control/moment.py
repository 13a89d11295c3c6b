"""Which moment does a parameter of a query mean? An ISO date or time, in UTC unless it says otherwise."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

# Reckoning with earlier ones might leave the calendar.
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


def read(text: object) -> datetime:
    """The moment, in UTC. Raises pydantic's error for what is none."""
    try:
        found = datetime.fromisoformat(str(text))
        moment = found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment < _FIRST:
        raise PydanticCustomError(
            "moment", "Input should be a date or a time such as 2026-01-31 or 2026-01-31T12:00:00Z"
        )
    return moment


Moment = Annotated[datetime, BeforeValidator(read)]
"""A parameter that is a moment."""
