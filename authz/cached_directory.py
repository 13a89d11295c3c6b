"""What does a worker remember of the directory, and how does a change reach it?

A bounded copy, filled on a miss by a single flight. An announced change marks what was made of an older version of the
row; without announcements nothing is used for longer than the TTL. In an outage, known principals go on for a stated
time.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from authz.directory import Directory, DirectoryOutage
from authz.principal import Handle, Principal

# For how long an outage is believed before Postgres is asked again on behalf of a principal that is known.
_OUTAGE_SECONDS = 1.0
# An answer that was on its way when its change was announced has come, or has failed, by then.
_FLOOR_SECONDS = 30.0
_ABSENT = 0  # the version of a row that a principal names and that is not there


@dataclass(slots=True)
class _Entry:
    principal: Principal | None
    read_at: float
    outdated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Floor:
    """The lowest version of a row that may be believed, announced as the so-manyeth, and when."""

    version: int
    at: float
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """How much is remembered, and for how long, in seconds.

    A copy is used up to `ttl`, and read anew ahead of time from `refresh` on. While the directory is out, a known
    principal goes on until its copy is `stale` seconds old; so it does when an answer takes longer than `patience`.
    Unknown handles have their own room, so that guessing does not push out who is known.
    """

    ttl: float = 4.0
    refresh: float = 2.0
    patience: float = 0.2
    stale: float = 300.0
    capacity: int = 100_000
    unknown_capacity: int = 20_000


class CachedDirectory:
    """A `Directory` that remembers. `now` is a monotonic clock in seconds."""

    def __init__(self, directory: Directory, *, now: Callable[[], float], limits: CacheLimits | None = None) -> None:
        self._directory = directory
        self._now = now
        self._limits = limits or CacheLimits()
        self._known: OrderedDict[Handle, _Entry] = OrderedDict()
        self._unknown: OrderedDict[Handle, _Entry] = OrderedDict()
        self._made_of: defaultdict[str, set[Handle]] = defaultdict(set)
        self._floors: OrderedDict[str, _Floor] = OrderedDict()
        self._announcements = 0
        self._flights: dict[Handle, asyncio.Task[Principal | None]] = {}
        self._changed_at = float("-inf")
        self._row_at = float("-inf")
        self._out_until = float("-inf")

    def held(self, handle: Handle) -> tuple[bool, Principal | None]:
        """Whether there is a copy that may be used, and the copy; needs no await."""
        entry = self._known.get(handle) or self._unknown.get(handle)
        if entry is None or entry.outdated or entry.read_at <= self._changed_at:
            return False, None
        age = self._now() - entry.read_at
        if age > self._limits.ttl:
            return False, None
        if age > self._limits.refresh and handle not in self._flights and self._now() >= self._out_until:
            self._fly(handle)
        return True, entry.principal

    def knows(self, handle: Handle) -> bool:
        """Whether there is a copy at all, however old."""
        return handle in self._known

    async def find(self, handle: Handle) -> Principal | None:
        """As `Directory.find`, from the copy where it may be used."""
        held, principal = self.held(handle)
        if held:
            return principal
        if self._now() < self._out_until:
            return self._last_known(handle)
        flight = self._flights.get(handle) or self._fly(handle)
        if self._may_go_on(handle):
            await asyncio.wait({flight}, timeout=self._limits.patience)
            if not flight.done():
                return self._last_known(handle)
        # Shielded: a caller that leaves must not end the flight of the others.
        return await asyncio.shield(flight)

    def announce(self, change: str | None) -> None:
        """Take in a change: `table:id:version`; anything else means that everything may have changed."""
        row, _, version = (change or "").rpartition(":")
        if ":" not in row or not version.isdigit():
            self._announce_all()
            return
        self._set_floor(row, int(version))
        for handle in self._made_of.get(row, ()):
            entry = self._known.get(handle)
            if entry is not None and _version(entry.principal, row) < int(version):
                entry.outdated = True
        # What is unknown is made of no row: any new row may be the one that was missing.
        self._row_at = self._now()
        self._unknown.clear()

    def _announce_all(self) -> None:
        self._changed_at = self._row_at = self._now()
        self._flights.clear()
        self._unknown.clear()

    def _set_floor(self, row: str, version: int) -> None:
        now = self._now()
        self._announcements += 1
        former = self._floors.pop(row, None)
        lowest = version if former is None else max(former.version, version)
        self._floors[row] = _Floor(version=lowest, at=now, number=self._announcements)
        while self._floors and next(iter(self._floors.values())).at < now - _FLOOR_SECONDS:
            self._floors.popitem(last=False)

    def _fly(self, handle: Handle) -> asyncio.Task[Principal | None]:
        flight = asyncio.get_running_loop().create_task(self._load(handle))
        self._flights[handle] = flight
        flight.add_done_callback(lambda done: self._landed(handle, done))
        return flight

    def _landed(self, handle: Handle, flight: asyncio.Task[Principal | None]) -> None:
        if self._flights.get(handle) is flight:
            del self._flights[handle]
        if not flight.cancelled():
            flight.exception()  # marks it as seen, should every caller have left

    async def _load(self, handle: Handle) -> Principal | None:
        asked_at, heard = self._now(), self._announcements
        try:
            principal = await self._directory.find(handle)
            if self._too_old(principal, heard):  # the change was announced while the answer was on its way
                heard = self._announcements
                principal = await self._directory.find(handle)
        except DirectoryOutage:
            self._out_until = self._now() + _OUTAGE_SECONDS
            return self._last_known(handle)
        if self._too_old(principal, heard):
            raise DirectoryOutage("the directory answers with what has been changed since")
        # The age counts from before the question: a change announced meanwhile may not be in the answer.
        return self._keep(handle, _Entry(principal, asked_at))

    def _too_old(self, principal: Principal | None, heard: int) -> bool:
        """Whether the answer is from before an announcement; `heard` is how many there were when it was asked for."""
        if principal is None or not self._floors:
            return False
        return any(self._below_floor(row, version, heard) for row, version in principal.versions)

    def _below_floor(self, row: str, version: int, heard: int) -> bool:
        floor = self._floors.get(row)
        if floor is None or version >= floor.version:
            return False
        # A row that is not there was deleted, if the question came after the announcement; or it was not there yet.
        return version != _ABSENT or heard < floor.number

    def _may_go_on(self, handle: Handle) -> bool:
        """Whether there is a copy that an outage would let its principal go on with."""
        entry = self._known.get(handle)
        return entry is not None and not entry.outdated and self._now() - entry.read_at <= self._limits.stale

    def _last_known(self, handle: Handle) -> Principal | None:
        if not self._may_go_on(handle):
            raise DirectoryOutage("the directory does not answer, and the principal is not known, or has changed")
        return self._known[handle].principal

    def _keep(self, handle: Handle, entry: _Entry) -> Principal | None:
        former = self._known.get(handle)
        if former is not None and not former.outdated and _newer(former, entry):
            return former.principal  # a slower, older answer never overwrites a newer one
        if entry.principal is None:
            self._forget(handle)
            if entry.read_at > self._row_at:
                self._unknown[handle] = entry
                _trim(self._unknown, self._limits.unknown_capacity)
            return None
        if (
            former is not None
            and former.principal is not None
            and former.principal.versions == entry.principal.versions
        ):
            # The same object as before: what was made of it need not be made again.
            entry = _Entry(former.principal, entry.read_at)
        else:
            self._forget(handle)
        self._unknown.pop(handle, None)
        self._known[handle] = entry
        self._known.move_to_end(handle)
        for row, _ in entry.principal.versions if entry.principal else ():
            self._made_of[row].add(handle)
        while len(self._known) > self._limits.capacity:
            self._forget(next(iter(self._known)))
        return entry.principal

    def _forget(self, handle: Handle) -> None:
        entry = self._known.pop(handle, None)
        if entry is None or entry.principal is None:
            return
        for row, _ in entry.principal.versions:
            handles = self._made_of[row]
            handles.discard(handle)
            if not handles:
                del self._made_of[row]


def _version(principal: Principal | None, row: str) -> int:
    return next((version for name, version in principal.versions if name == row), 0) if principal else 0


def _newer(former: _Entry, entry: _Entry) -> bool:
    """Whether the former copy is of a later version of any row, or was read later and is of no older one."""
    if former.principal is None or entry.principal is None:
        return former.read_at > entry.read_at
    read = dict(entry.principal.versions)
    known = dict(former.principal.versions)
    # A row that is gone has no version: which copy is newer, its reading tells.
    if any(read.get(row, _ABSENT) not in {_ABSENT, version} and version > read[row] for row, version in known.items()):
        return True
    return former.read_at > entry.read_at and not any(version > known.get(row, 0) for row, version in read.items())


def _trim(entries: OrderedDict[Handle, _Entry], capacity: int) -> None:
    while len(entries) > capacity:
        entries.popitem(last=False)
