"""Where are keys and tenants looked up, and how does a change reach the process that holds a copy?

`Directory` is the promise; `store.directory` keeps it with Postgres. `CachedDirectory` is what the hot path asks: a
bounded copy, filled on a miss by a single flight, dropped when a change is announced, and never older than its TTL.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from authz.grant import Metering
from quota.limit import Limit


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """An API key, and the tenant chain it stands on, as stored.

    `hash` is `authz.api_key.keyed_hash` of the key. Times are aware, in UTC; None means never.
    """

    id: str
    hash: bytes
    revoked_at: datetime | None
    expires_at: datetime | None
    organization_id: str
    organization_suspended: bool
    tenant_id: str
    tenant_suspended: bool
    plan: str
    limits: tuple[Limit, ...]
    metering: Metering


class DirectoryOutage(Exception):
    """The directory cannot be asked now; whether the key exists is unknown."""


class Directory(Protocol):
    """Looks up what identity decisions need."""

    async def find_key(self, key_id: str) -> KeyRecord | None:
        """The key with this public id, revoked ones included; None when there is none.

        Raises `DirectoryOutage` when the answer cannot be had.
        """


@dataclass(frozen=True, slots=True)
class _Entry:
    record: KeyRecord | None
    read_at: float


class CachedDirectory:
    """A bounded, short-lived copy of a directory.

    `now` is a monotonic clock in seconds. An unknown key is remembered like a known one, so that guessing does not
    reach the database twice. While the directory is out, a known key goes on for `stale_seconds`.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        now: Callable[[], float],
        ttl_seconds: float = 5.0,
        stale_seconds: float = 300.0,
        capacity: int = 100_000,
    ) -> None:
        self._directory = directory
        self._now = now
        self._ttl = ttl_seconds
        self._stale = stale_seconds
        self._capacity = capacity
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[str, asyncio.Task[KeyRecord | None]] = {}
        self._changed_at = float("-inf")

    def fresh(self, key_id: str) -> tuple[bool, KeyRecord | None]:
        """Whether a fresh copy is held, and the copy; needs no await."""
        entry = self._entries.get(key_id)
        if entry is None or entry.read_at <= self._changed_at or self._now() - entry.read_at > self._ttl:
            return False, None
        return True, entry.record

    async def find_key(self, key_id: str) -> KeyRecord | None:
        """As `Directory.find_key`, from the copy where it is fresh."""
        held, record = self.fresh(key_id)
        if held:
            return record
        flight = self._flights.get(key_id)
        if flight is None:
            flight = asyncio.create_task(self._load(key_id))
            self._flights[key_id] = flight
            flight.add_done_callback(lambda done: self._landed(key_id, done))
        # Shielded: a caller that leaves must not end the flight of the others.
        return await asyncio.shield(flight)

    def announce_change(self) -> None:
        """Something changed: what is held, or is being read now, may be old. Kept only for an outage."""
        self._changed_at = self._now()
        self._flights.clear()

    async def _load(self, key_id: str) -> KeyRecord | None:
        asked_at = self._now()
        try:
            record = await self._directory.find_key(key_id)
        except DirectoryOutage:
            return self._stale_copy(key_id)
        # The age counts from before the question: a change announced meanwhile may not be in the answer.
        self._keep(key_id, _Entry(record, asked_at))
        return record

    def _landed(self, key_id: str, flight: asyncio.Task[KeyRecord | None]) -> None:
        if self._flights.get(key_id) is flight:
            del self._flights[key_id]
        if not flight.cancelled():
            flight.exception()  # marks it as seen, should every caller have left

    def _stale_copy(self, key_id: str) -> KeyRecord | None:
        entry = self._entries.get(key_id)
        if entry is None or entry.record is None or self._now() - entry.read_at > self._stale:
            raise DirectoryOutage
        return entry.record

    def _keep(self, key_id: str, entry: _Entry) -> None:
        held = self._entries.get(key_id)
        if held is not None and held.read_at > entry.read_at:
            return  # a slower, older answer never overwrites a newer one
        self._entries[key_id] = entry
        self._entries.move_to_end(key_id)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
