"""What does the body of `/v1/limits` look like? The shapes that are written and documented."""

from datetime import datetime, timedelta
from typing import Self

from pydantic import BaseModel, Field

from quota.limit import CALENDAR, Dimension, Limit, Mode, OnOutage, Unit, Window
from quota.overview import CarriedLimit
from quota.reservation import Standing


class LimitWindow(BaseModel):
    """Over what a limit is counted."""

    kind: Window
    seconds: int | None = Field(description="The length of a sliding window; null for the others.")
    time_zone: str | None = Field(description="Where a calendar's hour, day or month begins; null for the others.")

    @classmethod
    def of(cls, limit: Limit, time_zone: str) -> Self:
        """The window of a limit."""
        return cls(
            kind=limit.window,
            seconds=limit.seconds if limit.window is Window.SLIDING else None,
            time_zone=time_zone if limit.window in CALENDAR else None,
        )


class LimitStatus(BaseModel):
    """A limit that holds for the caller."""

    name: str
    unit: Unit = Field(description="What is counted; `cost` in micro-dollars.")
    window: LimitWindow
    ceiling: int
    burst: int | None = Field(description="The most that the window takes at once; null for all of the ceiling.")
    per: list[Dimension] = Field(description="For what it is counted apart: each of these has a counter of its own.")
    route: str | None = Field(description="The one path that it holds for; null for all.")
    model: str | None = Field(description="The models that it holds for, `gpt-*` for all that begin so; null for all.")
    mode: Mode = Field(description="`shadow`: it is counted and refuses nothing.")
    on_outage: OnOutage = Field(description="What becomes of requests while the limits cannot be asked.")
    numbers_with: list[Dimension] = Field(
        description="The query parameters that say which of its counters is meant; without them the numbers are null."
    )
    used: int | None = Field(description="What requests that have ended count for.")
    reserved: int | None = Field(description="What running requests have taken in advance.")
    left: int | None = Field(description="What is left under the ceiling.")
    resets_at: datetime | None = Field(description="When its window is empty if nothing more is used; null if it is.")
    resets_in_ms: int | None

    @classmethod
    def of(cls, carried: CarriedLimit, standing: Standing | None, *, now: datetime) -> Self:
        """Show a limit, with its numbers where it has one counter."""
        limit = carried.limit
        reset_ms = standing.reset_ms if standing and standing.reset_ms > 0 else None
        return cls(
            name=limit.name,
            unit=limit.unit,
            window=LimitWindow.of(limit, carried.time_zone),
            ceiling=limit.ceiling,
            burst=limit.burst or None,
            per=list(carried.per),
            route=limit.route or None,
            model=limit.model or None,
            mode=limit.mode,
            on_outage=limit.on_outage,
            numbers_with=list(carried.missing),
            used=standing and standing.used - standing.reserved,
            reserved=standing and standing.reserved,
            left=standing and max(limit.ceiling - standing.used, 0),
            resets_at=_to_the_second(now + timedelta(milliseconds=reset_ms)) if reset_ms else None,
            resets_in_ms=reset_ms,
        )


def _to_the_second(time: datetime) -> datetime:
    """The nearest second: the clocks of Redis and of this process differ by milliseconds."""
    return (time + timedelta(seconds=0.5)).replace(microsecond=0)


class LimitList(BaseModel):
    """The limits that hold for the caller."""

    data: list[LimitStatus]
