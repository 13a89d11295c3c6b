"""How is guessing slowed? Wrong credentials are counted by the address they come from, and past a limit it is refused.

Counted here at once, and in the background over all workers, whose shared number decides. Nothing on the hot path
waits for it: that is a look into a dictionary.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Protocol

_MAX_SOURCES = 100_000
_MAX_TASKS = 1000
_MAX_JUNK = 64
_HOST_BITS = 64


class CountOutage(Exception):
    """The shared number cannot be had now; whether this failure was counted is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many failures a source has in its window, and the milliseconds until that ends."""

    failures: int
    reset_ms: int


class FailureCounts(Protocol):
    """Counts over all workers."""

    async def add(self, source: str) -> Count:
        """Count one more failure of the source. Raises `CountOutage`."""


@dataclass(slots=True)
class _Window:
    until: float
    failures: int = 0


@lru_cache(maxsize=20_000)
def source_of(address: str) -> str:
    """What an address is counted under.

    IPv4: itself, also when it is mapped into IPv6 (RFC 4291 section 2.5.5.2). IPv6: its /64, of which one host may use
    every address (RFC 4291 section 2.5.1). What is no address: its beginning, in ASCII.
    """
    try:
        return str(IPv4Address(address))
    except AddressValueError:
        pass
    try:
        found = IPv6Address(address)
    except AddressValueError:
        return ascii(address[:_MAX_JUNK])
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> _HOST_BITS << _HOST_BITS)}/{128 - _HOST_BITS}"


class FailureGuard:
    """Knows which sources failed too often: `limit` times in `window_seconds`, which the shared counts use too.

    A window begins with its first failure, and a source that is refused is free again when it ends. While the shared
    number cannot be had, the local one holds alone. `now` is a monotonic clock in seconds.

    It remembers a bounded number of sources; one that was pushed out is known again by its next failure. Beyond a
    bounded number of counts under way a failure is counted only here.
    """

    def __init__(
        self, counts: FailureCounts, *, limit: int = 30, window_seconds: int = 60, now: Callable[[], float]
    ) -> None:
        self._counts = counts
        self._limit = limit
        self._window_seconds = window_seconds
        self._now = now
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def blocked_ms(self, source: str) -> int | None:
        """The milliseconds, at least 1, until the source is free again; None when it is."""
        window = self._windows.get(source)
        if window is None or window.failures < self._limit:
            return None
        left = window.until - self._now()
        return max(round(left * 1000), 1) if left > 0 else None

    def note(self, source: str) -> None:
        """Count one more failure of the source. Waits for nothing; must be called in a running loop."""
        window = self._windows.get(source)
        if window is None or window.until <= self._now():
            window = self._open(source)
        window.failures += 1
        if len(self._tasks) < _MAX_TASKS:
            task = asyncio.get_running_loop().create_task(self._share(source, window))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for the counts that are under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _open(self, source: str) -> _Window:
        now = self._now()
        self._windows.pop(source, None)
        while self._windows:
            oldest = next(iter(self._windows))
            if self._windows[oldest].until > now and len(self._windows) < _MAX_SOURCES:
                break
            del self._windows[oldest]
        window = self._windows[source] = _Window(now + self._window_seconds)
        return window

    async def _share(self, source: str, window: _Window) -> None:
        try:
            count = await self._counts.add(source)
        except CountOutage:
            return
        # A smaller number is an answer that was overtaken, or of an outage in which only this worker counted.
        if count.failures >= window.failures:
            window.failures = count.failures
            window.until = self._now() + count.reset_ms / 1000
