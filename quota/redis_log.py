"""How does one process observe all requests? It reads the logs of all shards, which the scripts of each step fill.

A log is bounded, and nobody's to acknowledge: each observer keeps its own place, and one that is too far behind misses
some. The ledger has a stream of its own (`quota.redis_events`), which loses nothing.
"""

import asyncio
from typing import Any

from redis.exceptions import ResponseError

from quota.pipe import Argument, Pipe
from quota.redis import SHARDS, key_of
from quota.reservation import QuotaOutage
from quota.stream_reply import entries_of

Positions = tuple[str, ...]
"""A place in each shard's log: the id of the last entry that was read."""
_BEGINNING = "0-0"
_AT_ONCE = 1000
_LOGS = tuple(key_of(shard, "log") for shard in range(SHARDS))


class RedisRequestLog:
    """The events of all requests. The pipe is its owner's to close; every method raises QuotaOutage."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def positions(self) -> Positions:
        """The ends of the logs now."""
        answers = await asyncio.gather(*(self._ask("XREVRANGE", log, "+", "-", "COUNT", 1) for log in _LOGS))
        return tuple(answer[0][0].decode() if answer else _BEGINNING for answer in answers)

    async def read(self, positions: Positions) -> tuple[list[bytes], Positions]:
        """What was appended since, and the positions after it; those of one request in their order.

        At most a thousand of each shard: the rest comes next time.
        """
        places = dict(zip(_LOGS, positions, strict=True))
        groups = [_LOGS] if self._pipe.one_server else [(log,) for log in _LOGS]
        answers = await asyncio.gather(
            *(
                self._ask("XREAD", "COUNT", _AT_ONCE, "STREAMS", *logs, *map(places.__getitem__, logs))
                for logs in groups
            )
        )
        events: list[bytes] = []
        for log, entries in (item for answer in answers for item in entries_of(answer).items()):
            events += [fields[b"event"] for _, fields in entries if b"event" in fields]
            places[log] = entries[-1][0]
        return events, tuple(places.values())

    async def _ask(self, *command: Argument) -> Any:
        try:
            return await self._pipe.call(*command)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error
