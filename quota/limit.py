"""What is a limit? A ceiling on one unit over one window; all limits of a request are checked together."""

import math
from enum import StrEnum

import msgspec

# A sliding window is counted in this many slices. The slice that is only partly inside the window still counts
# whole, so that no window of the stated length ever holds more than the ceiling; room returns one slice late at most.
SLICES = 60
DAY_SECONDS = 86_400
MS = 1000


class Unit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT_REQUESTS = "concurrent_requests"


class Window(StrEnum):
    """How a limit's window moves."""

    SLIDING = "sliding"
    CALENDAR_DAY = "calendar_day"  # from midnight to midnight, UTC
    LEASE = "lease"  # as long as a request runs


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A ceiling on a unit over a window.

    `seconds` is the length of a sliding window and is ignored by the others. `ceiling` counts units of `unit`.
    """

    name: str
    unit: Unit
    window: Window
    ceiling: int
    seconds: int = 0

    @property
    def slice_ms(self) -> int:
        """Length in milliseconds of one slice of the window; 0 for a lease."""
        match self.window:
            case Window.SLIDING:
                # Rounded up, so that the slices together are never shorter than the window.
                return math.ceil(self.seconds * MS / SLICES)
            case Window.CALENDAR_DAY:
                return DAY_SECONDS * MS
            case Window.LEASE:
                return 0

    @property
    def live_slices(self) -> int:
        """How many slices, counted back from the current one, still hold room."""
        return SLICES + 1 if self.window is Window.SLIDING else 1


def requests_per_minute(ceiling: int) -> Limit:
    """At most `ceiling` requests in any 60 seconds."""
    return Limit(name="requests_per_minute", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=ceiling, seconds=60)


def tokens_per_day(ceiling: int) -> Limit:
    """At most `ceiling` tokens, input and output together, in a UTC day."""
    return Limit(name="tokens_per_day", unit=Unit.TOKENS, window=Window.CALENDAR_DAY, ceiling=ceiling)


def concurrent_requests(ceiling: int) -> Limit:
    """At most `ceiling` requests at the same time."""
    return Limit(name="concurrent_requests", unit=Unit.CONCURRENT_REQUESTS, window=Window.LEASE, ceiling=ceiling)
