"""What does a worker remember of sessions, and for how long may it believe it?

A bounded copy, filled on a miss by a single flight. Nobody announces a revocation: a copy is just used for so short a
time that every revocation is in force soon.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from authz.session import Session, SessionOutage, Sessions, SessionToken

_UNKNOWN_CAPACITY = 10_000


@dataclass(frozen=True, slots=True)
class _Copy:
    session: Session | None
    asked_at: float
    until: float


@dataclass(frozen=True, slots=True)
class _Flight:
    task: "asyncio.Task[_Copy]"
    asked_at: float


class CachedSessions:
    """Sessions that are remembered for `ttl_seconds` from the moment they were asked for; so long a revocation takes.

    Known and unknown tokens have a room each: guessing does not push out who is known. While the store is out, a known
    session goes on for what is left of that time, and is a `SessionOutage` then. `now` is a monotonic clock in seconds.
    """

    def __init__(
        self, sessions: Sessions, *, now: Callable[[], float], ttl_seconds: float = 0.5, capacity: int = 50_000
    ) -> None:
        self._sessions = sessions
        self._now = now
        self._ttl = ttl_seconds
        self._capacity = capacity
        self._known: OrderedDict[str, _Copy] = OrderedDict()
        self._unknown: OrderedDict[str, _Copy] = OrderedDict()
        self._flights: dict[str, _Flight] = {}

    def held(self, text: str) -> tuple[bool, Session | None]:
        """Whether there is a copy for a token's text that may be used, and the copy; needs no await.

        A copy at its session's idle or absolute end may not: another worker may have seen it used since.
        """
        copy = self._copy(text)
        return (False, None) if copy is None or self._now() >= copy.until else (True, copy.session)

    async def find(self, token: SessionToken) -> Session | None:
        """As `Sessions.find`, from the copy where it may be used."""
        held, session = self.held(token.text)
        if held:
            return session
        flight = self._flights.get(token.text)
        if flight is None or self._now() - flight.asked_at >= self._ttl:
            flight = self._fly(token)
        # Shielded: a caller that leaves must not end the flight of the others.
        copy = await asyncio.shield(flight.task)
        if copy.session is not None and self._now() >= copy.until:
            raise SessionOutage("the answer came too late to be believed: the session may have ended since")
        return copy.session

    def _copy(self, text: str) -> _Copy | None:
        return self._known.get(text) or self._unknown.get(text)

    def _fly(self, token: SessionToken) -> _Flight:
        asked_at = self._now()
        task = asyncio.get_running_loop().create_task(self._load(token, asked_at))
        flight = self._flights[token.text] = _Flight(task, asked_at)
        task.add_done_callback(lambda _: self._landed(token.text, flight))
        return flight

    def _landed(self, text: str, flight: _Flight) -> None:
        if self._flights.get(text) is flight:
            del self._flights[text]
        if not flight.task.cancelled():
            flight.task.exception()  # marks it as seen, should every caller have left

    async def _load(self, token: SessionToken, asked_at: float) -> _Copy:
        session = await self._sessions.find(token)
        # Counted from before the question: the answer may be older than a revocation that came while it was on its way.
        seconds = self._ttl if session is None else min(self._ttl, (session.ends_ms - session.last_used_ms) / 1000)
        return self._keep(token.text, _Copy(session, asked_at, asked_at + seconds))

    def _keep(self, text: str, copy: _Copy) -> _Copy:
        former = self._copy(text)
        if former is not None and former.asked_at > copy.asked_at:
            return former  # a slower, older answer never overwrites a newer one
        self._known.pop(text, None)
        self._unknown.pop(text, None)
        room, capacity = (self._unknown, _UNKNOWN_CAPACITY) if copy.session is None else (self._known, self._capacity)
        room[text] = copy
        self._trim(room, capacity)
        return copy

    def _trim(self, room: OrderedDict[str, _Copy], capacity: int) -> None:
        """Let go of what is too much, and of what is too old to be used: the oldest stand first."""
        now = self._now()
        while room and (len(room) > capacity or now >= next(iter(room.values())).until):
            room.popitem(last=False)
