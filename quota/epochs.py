"""Which shards have kept their counters? Each has an epoch, which is gone when Redis was flushed, and another later."""

import asyncio
from typing import Any

from redis.exceptions import ResponseError

from quota.pipe import Pipe
from quota.redis import SHARDS, key_of
from quota.reservation import QuotaOutage

_KEYS = tuple(key_of(shard, "epoch") for shard in range(SHARDS))


async def epochs(pipe: Pipe) -> dict[int, bytes | None]:
    """The epoch of each shard that can be asked; None where it is gone. Raises QuotaOutage when none can be asked."""
    told = await _told(pipe)
    failures = [answer for answer in told if isinstance(answer, BaseException)]
    for failure in failures:
        if not isinstance(failure, QuotaOutage | ResponseError):
            raise failure
    if len(failures) == SHARDS:
        raise QuotaOutage(f"Redis could not be asked: {failures[0]}") from failures[0]
    return {shard: answer for shard, answer in enumerate(told) if not isinstance(answer, BaseException)}


async def _told(pipe: Pipe) -> list[Any]:
    if not pipe.one_server:
        return await asyncio.gather(*(pipe.call("GET", key) for key in _KEYS), return_exceptions=True)
    try:
        return list(await pipe.call("MGET", *_KEYS))
    except (QuotaOutage, ResponseError) as error:
        return [error] * SHARDS
