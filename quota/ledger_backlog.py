"""What waits for the ledger? How many settled requests of each shard are not rows yet, and since when."""

import asyncio
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from quota.pipe import Argument, Pipe
from quota.redis import SHARDS, key_of
from quota.reservation import QuotaOutage


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The settled requests of a shard that the ledger has not acknowledged.

    `oldest_ms` is when the first of them was settled, by Redis's clock; None without any.
    """

    shard: int
    count: int
    oldest_ms: int | None


class LedgerBacklog:
    """Looks at the streams of settled events, and takes nothing out of them. The pipe is its owner's to close."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def waiting(self) -> list[Waiting]:
        """What waits in each shard. Raises QuotaOutage when one cannot be asked."""
        return list(await asyncio.gather(*(self._of(shard) for shard in range(SHARDS))))

    async def _of(self, shard: int) -> Waiting:
        stream = key_of(shard, "events")
        count, oldest = await asyncio.gather(
            self._ask("XLEN", stream), self._ask("XRANGE", stream, "-", "+", "COUNT", 1)
        )
        oldest_ms = int(oldest[0][0].partition(b"-")[0]) if oldest else None
        return Waiting(shard=shard, count=int(count), oldest_ms=oldest_ms)

    async def _ask(self, *command: Argument) -> Any:
        try:
            return await self._pipe.call(*command)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error
