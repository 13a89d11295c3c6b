"""Are the limits worth asking now? After an outage they are not, but by one request every quarter of a second.

So an outage adds one deadline to the requests that run into it first, and none to those that follow.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

from quota.redis import shard_of
from quota.reservation import Claim, Exceeded, QuotaOutage, Reservation

PROBE_SECONDS = 0.25


class Reserves(Protocol):
    """Takes room; the part of `quota.reservation.Reservations` that a request waits for."""

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`."""


class NotAsked(QuotaOutage):
    """The limits were out a moment ago, so they were not asked: nothing was taken."""


class Breaker:
    """`Reserves` that fails at once while the limits are out.

    `now` is a monotonic clock in seconds. `observe` is told True when an outage begins and False when it is over.
    """

    def __init__(self, reservations: Reserves, *, now: Callable[[], float], observe: Callable[[bool], None]) -> None:
        self._reservations = reservations
        self._now = now
        self._observe = observe
        self._probe_at = math.inf
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether the limits are out, as far as is known."""
        return self._probe_at < math.inf

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`; raises `NotAsked` when it is not this request's turn to try."""
        if not self.open:
            return await self._ask(claim)
        if self._probing or self._now() < self._probe_at:
            raise NotAsked("the limits could not be asked a moment ago")
        self._probing = True
        # Set before the answer: a probe that is given up is followed by the next one in time.
        self._probe_at = self._now() + PROBE_SECONDS
        try:
            return await self._ask(claim)
        finally:
            self._probing = False

    async def _ask(self, claim: Claim) -> Reservation | Exceeded:
        try:
            outcome = await self._reservations.reserve(claim)
        except QuotaOutage:
            self._break()
            raise
        self._close()
        return outcome

    def _break(self) -> None:
        began = not self.open
        self._probe_at = self._now() + PROBE_SECONDS
        if began:
            self._observe(True)  # noqa: FBT003 - an observer has one question

    def _close(self) -> None:
        if self.open:
            self._probe_at = math.inf
            self._observe(False)  # noqa: FBT003 - as above


class ShardBreakers:
    """A breaker for each shard: of a Redis Cluster one server may be away while the others answer.

    `observe` is told True when the first shard is out and False when the last is back.
    """

    def __init__(self, reservations: Reserves, *, now: Callable[[], float], observe: Callable[[bool], None]) -> None:
        self._reservations = reservations
        self._now = now
        self._observe = observe
        self._out: set[int] = set()
        self._breakers: dict[int, Breaker] = {}

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`; raises `NotAsked` when it is not this request's turn to try."""
        shard = shard_of(claim.organization_id)
        breaker = self._breakers.get(shard)
        if breaker is None:
            breaker = Breaker(self._reservations, now=self._now, observe=partial(self._note, shard))
            self._breakers[shard] = breaker
        return await breaker.reserve(claim)

    def _note(self, shard: int, out: bool) -> None:  # noqa: FBT001 - an observer has one question
        before = bool(self._out)
        (self._out.add if out else self._out.discard)(shard)
        if bool(self._out) is not before:
            self._observe(out)
