"""What is a limit? A ceiling on one unit over one window, counted for somebody; all of a request hold together."""

import math
from enum import StrEnum

import msgspec

# A sliding window is counted in this many slices. The slice that is only partly inside the window still counts
# whole, so that no window of the stated length ever holds more than the ceiling; room returns one slice late at most.
SLICES = 60
MS = 1000


class Unit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TOKENS = "tokens"  # input and output together
    CONCURRENT_REQUESTS = "concurrent_requests"
    COST = "cost"  # micro-dollars


class Window(StrEnum):
    """How a limit's window moves. Calendar windows go by the time zone of the tenant."""

    SLIDING = "sliding"
    CALENDAR_HOUR = "calendar_hour"
    CALENDAR_DAY = "calendar_day"
    CALENDAR_MONTH = "calendar_month"
    LEASE = "lease"  # as long as a request runs


CALENDAR = frozenset({Window.CALENDAR_HOUR, Window.CALENDAR_DAY, Window.CALENDAR_MONTH})


class Dimension(StrEnum):
    """What a limit may be counted apart for, from the widest to the narrowest."""

    ORGANIZATION = "organization"
    TENANT = "tenant"
    PRINCIPAL = "principal"
    ROUTE = "route"
    MODEL = "model"


OWNERS = frozenset({Dimension.ORGANIZATION, Dimension.TENANT, Dimension.PRINCIPAL})


class Mode(StrEnum):
    """Whether a limit refuses, or only says what it would have refused."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class OnOutage(StrEnum):
    """What becomes of requests under a limit while the store of the limits cannot be asked."""

    CLOSED = "closed"  # they are refused
    OPEN = "open"  # they pass
    LOCAL = "local"  # each worker lets its share of the ceiling pass, counted in its own memory


class Limit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A ceiling on a unit over a window.

    `name` says unit and window. `seconds` is the length of a sliding window and is ignored by the others. `ceiling`
    and `burst` count units of `unit`; a `burst` other than 0 is the most that a sliding window takes at once, and room
    for more comes back evenly, `ceiling` in `seconds`.

    `per` is what is counted apart: (TENANT, MODEL) is a ceiling for each model of each tenant. Without an owner in it
    (organization, tenant, principal) it is counted for whoever carries the limit. With `route` (a path) or `model` (a
    pattern, `gpt-*`) it holds for these only, there in place of the same limit without them.

    Of several that refuse, the one of the highest `priority` is named.
    """

    name: str
    unit: Unit
    window: Window
    ceiling: int
    seconds: int = 0
    burst: int = 0
    per: tuple[Dimension, ...] = ()
    route: str = ""
    model: str = ""
    priority: int = 0
    mode: Mode = Mode.ENFORCE
    on_outage: OnOutage = OnOutage.CLOSED

    @property
    def window_ms(self) -> int:
        """Length of a sliding window in milliseconds."""
        return self.seconds * MS

    @property
    def slice_ms(self) -> int:
        """Length in milliseconds of one slice of a sliding window."""
        # Rounded up, so that the slices together are never shorter than the window.
        return math.ceil(self.window_ms / SLICES)

    @property
    def live_slices(self) -> int:
        """How many slices, counted back from the current one, still hold room."""
        return SLICES + 1 if self.window is Window.SLIDING else 1

    @property
    def enforced(self) -> bool:
        """Whether it refuses."""
        return self.mode is Mode.ENFORCE


def limit_name(unit: Unit, window: Window, seconds: int = 0) -> str:
    """What a limit of this kind is called: `requests_per_minute`, `tokens_per_day`, `requests_per_90s`.

    `..._per_minute` and `..._per_hour` slide; the clock's hour is `..._per_calendar_hour`. A day and a month are the
    calendar's; 86,400 seconds that may begin at any moment are `..._per_86400s`.
    """
    match window:
        case Window.LEASE:
            return unit.value
        case Window.CALENDAR_HOUR:
            return f"{unit}_per_calendar_hour"
        case Window.CALENDAR_DAY:
            return f"{unit}_per_day"
        case Window.CALENDAR_MONTH:
            return f"{unit}_per_month"
        case Window.SLIDING:
            return f"{unit}_per_{_SPANS.get(seconds, f'{seconds}s')}"


_SPANS = {60: "minute", 3600: "hour"}


def requests_per_minute(ceiling: int) -> Limit:
    """At most `ceiling` requests in any 60 seconds."""
    return Limit(name="requests_per_minute", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=ceiling, seconds=60)


def tokens_per_day(ceiling: int) -> Limit:
    """At most `ceiling` tokens, input and output together, in a calendar day."""
    return Limit(name="tokens_per_day", unit=Unit.TOKENS, window=Window.CALENDAR_DAY, ceiling=ceiling)


def concurrent_requests(ceiling: int) -> Limit:
    """At most `ceiling` requests at the same time."""
    return Limit(name="concurrent_requests", unit=Unit.CONCURRENT_REQUESTS, window=Window.LEASE, ceiling=ceiling)
