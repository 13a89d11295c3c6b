"""How are wrong credentials counted over all workers? In Redis, by a counter for each source that ends by itself."""

from authz.failures import Count, CountOutage
from quota.pipe import Pipe
from quota.redis import key_of, shard_of
from quota.reservation import QuotaOutage
from quota.scripts import load, run

_COUNT = load("failure_count", "store")


class RedisFailureCounts:
    """The number that all workers share. The pipe is its owner's to close."""

    def __init__(self, pipe: Pipe, *, window_seconds: int = 60) -> None:
        self._pipe = pipe
        self._window_ms = window_seconds * 1000

    async def add(self, source: str) -> Count:
        """See `FailureCounts.add`."""
        key = key_of(shard_of(source), "failures", source)
        try:
            failures, reset_ms = await run(self._pipe, _COUNT, [key], [self._window_ms])
        except QuotaOutage as error:
            raise CountOutage(str(error)) from error
        return Count(failures=failures, reset_ms=reset_ms)
