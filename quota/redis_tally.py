"""How much was settled on a day? What Redis counted beside the events for the ledger, to compare the ledger with."""

from dataclasses import dataclass, field
from datetime import date

from redis.exceptions import ResponseError

from quota.pipe import Pipe
from quota.redis import key_of
from quota.reservation import QuotaOutage, sequence_of

_EPOCH = date(1970, 1, 1)
_FIELDS = ("rows", "requests", "tokens", "cost", "since")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was settled: `rows` events, and the charges in them. `cost` is micro-dollars.

    `since` is the sequence of the first event counted: what Redis has lost was before it.
    """

    rows: int
    requests: int
    tokens: int
    cost: int
    since: int = field(default=0, compare=False)


class RedisTally:
    """The tallies of the last 40 days. The pipe is its owner's to close."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def of(self, shard: int, day: date) -> Tally | None:
        """What was settled in the shard on a day; None when nothing was, or it is forgotten.

        The day, UTC, is that of the events' ids (`SettledEvent.sequence`). Raises QuotaOutage.
        """
        key = key_of(shard, "tally", str((day - _EPOCH).days))
        try:
            rows, requests, tokens, cost, since = await self._pipe.call("HMGET", key, *_FIELDS)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error
        if rows is None:
            return None
        return Tally(
            rows=int(rows),
            requests=int(requests),
            tokens=int(tokens),
            cost=int(cost),
            since=sequence_of((since or b"0-0").decode()),
        )
