"""Has Redis lost what was settled, before the ledger had it? Then it is settled again, from memory.

Settled requests wait in Redis for the ledger some tenths of a second. A flush takes them along, and so does a restart
or a failover that comes back with nothing; nobody else knows of them any more. The counters' epochs tell it, which go
with them.
What was not lost is not settled twice, and has one row in the ledger in any case.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Protocol

from quota.epochs import epochs
from quota.pipe import Pipe
from quota.reservation import QuotaOutage

_LOOK_SECONDS = 0.25


class Settles(Protocol):
    """Remembers what it has settled."""

    async def settle_again(self) -> int:
        """See `extproc.settlement.Settler.settle_again`."""


class LostSettlements:
    """Watches the epochs of all shards. `observe` is told how many settlements had been lost and are made again."""

    def __init__(self, pipe: Pipe, settler: Settles, *, observe: Callable[[int], None]) -> None:
        self._pipe = pipe
        self._settler = settler
        self._observe = observe
        self._known: dict[int, bytes | None] = {}

    async def run(self) -> None:
        """Watch until cancelled; an outage is waited out."""
        while True:
            with contextlib.suppress(QuotaOutage):
                await self.step()
            await asyncio.sleep(_LOOK_SECONDS)

    async def step(self) -> None:
        """Look once. Raises `QuotaOutage` when what is lost cannot be settled again now: the next look tries it."""
        found = await epochs(self._pipe)
        # Gone, or another one already.
        if any(self._known.get(shard, epoch) != epoch for shard, epoch in found.items()):
            count = await self._settler.settle_again()
            if count:
                self._observe(count)
        self._known |= found
