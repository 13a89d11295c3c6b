"""Who ends the requests that run for somebody who may not go on? Each worker its own, where the settings say so.

It looks when a change is announced, once more shortly after, for what was being admitted at that moment, and every few
seconds: a key also expires by itself, which nobody announces, and an announcement can be missed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from extproc.holder import Holder
from extproc.lifecycle import Cause
from extproc.live import LiveRequests
from store.database import DatabaseOutage

_ROUND_SECONDS = 4.0
_AGAIN_SECONDS = 0.5
# A certificate's name is announced, and not known of those that run.
_ANY = frozenset({"workloads"})

FindFallen = Callable[[set[Holder]], Awaitable[set[Holder]]]
"""Those who may not go on. Raises `DatabaseOutage`: nobody is ended for what is not known."""


class RevokedStreams:
    """Watches the live requests of a worker."""

    def __init__(self, live: LiveRequests, fallen: FindFallen) -> None:
        self._live = live
        self._fallen = fallen
        self._announced = asyncio.Event()

    def announce(self, change: str | None) -> None:
        """A row has changed: `table:id:version`; anything else means that every one may have."""
        row, _, version = (change or "").rpartition(":")
        table = row.partition(":")[0]
        everything = ":" not in row or not version.isdigit() or table in _ANY
        if everything or any(row in _rows(holder) for holder in self._live.holders()):
            self._announced.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        pause = _ROUND_SECONDS
        while True:
            announced = await self._wait(pause)
            pause = _AGAIN_SECONDS if announced else _ROUND_SECONDS
            with contextlib.suppress(DatabaseOutage):
                await self.step()

    async def step(self) -> None:
        """Look once. Raises `DatabaseOutage`."""
        holders = self._live.holders()
        if holders:
            self._live.stop_of(await self._fallen(holders), Cause.REVOKED)

    async def _wait(self, seconds: float) -> bool:
        """Whether something was announced meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._announced.wait()
        except TimeoutError:
            return False
        self._announced.clear()
        return True


def _rows(holder: Holder) -> tuple[str, ...]:
    """The rows that a holder hangs on, as they are announced."""
    return (
        f"api_keys:{holder.key_id}",
        f"subjects:{holder.principal_id}",
        f"tenants:{holder.tenant_id}",
        f"organizations:{holder.organization_id}",
    )
