"""Does the ledger have room for what comes, and does what is old go? Beside the ledger writer: months made and dropped.

Nothing waits for it: what no month holds is written all the same (`store.partitions`).
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import date, datetime

from sidecar.logs import Logger
from store import partitions
from store.database import DatabaseOutage, Pool

EVERY_SECONDS = 86_400.0
# What reads the ledger may hold a lock for minutes, and Postgres may be away; two months ahead there is no hurry.
_RETRY_SECONDS = 60.0


class LedgerUpkeep:
    """Makes the ledger's months ahead of time, and drops those that are older than `retention_months`; None: none.

    `now` tells the time, with its zone.
    """

    def __init__(
        self, pool: Pool, logger: Logger, *, retention_months: int | None, now: Callable[[], datetime]
    ) -> None:
        self._pool = pool
        self._logger = logger
        self._retention_months = retention_months
        self._now = now
        self._out = False

    async def run(self) -> None:
        """Do it now and daily, until cancelled; an outage is waited out."""
        while True:
            try:
                await self.step()
                self._out = False
                await asyncio.sleep(EVERY_SECONDS)
            except DatabaseOutage as outage:
                if not self._out:
                    self._logger.warning(
                        "the ledger's months are not looked after", action="ledger_upkeep_waiting", reason=str(outage)
                    )
                self._out = True
                await asyncio.sleep(_RETRY_SECONDS)

    async def step(self) -> None:
        """Make what is missing, drop what is too old. Raises `DatabaseOutage`."""
        now = self._now()
        for month in await partitions.ensure(self._pool, now=now):
            self._logger.info("the ledger has another month", action="ledger_month_made", month=_written(month))
        if self._retention_months is None:
            return
        kept = partitions.oldest_kept(now, self._retention_months)
        async with aclosing(partitions.drop_before(self._pool, kept)) as dropped:
            async for month in dropped:
                self._logger.warning(
                    "a month of the ledger is gone", action="ledger_month_dropped", month=_written(month)
                )


def _written(month: date) -> str:
    return f"{month:%Y-%m}"
