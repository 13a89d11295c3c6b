"""What do the processes tell each other through Redis? What was learned of models, and which share of work to shed.

All of it stands under one hash tag, expires by itself, and is read off the hot path, about once a second.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from quota.estimate import BOUNDS, FEWEST_LESSONS, MODELS, Delta, Estimate
from quota.pipe import Pipe
from quota.redis import key_of
from quota.reservation import QuotaOutage
from quota.scripts import load, run

# The tag of a shard, so that they are on one node of a Redis Cluster; which one does not matter.
_SHARD = 0
_LEARN, _SHED = load("learn"), load("shed")
_FACTS, _ESTIMATES, _MODELS = (key_of(_SHARD, "learned", name) for name in ("facts", "estimates", "models"))
_WISHES, _HIGHEST = key_of(_SHARD, "shed", "replicas"), key_of(_SHARD, "shed", "highest")
# A script holds Redis up; this many models take it about a millisecond.
_MODELS_A_CALL = 50
# Beyond this many lessons of a model all are halved: a model that changes is known anew after as many requests.
MOST_LESSONS = 2048
# An answer is taken to be as long as this share of them stays within, in thousandths.
_COVERED = 900
_KEEP_MS = 30 * 86_400_000
# A replica says its share every second; one that says it no more has nothing to say.
SHED_HOLD_MS = 3000

_ENCODER = msgspec.json.Encoder()


class RedisSignals:
    """Signals through Redis; the pipe stays its owner's. Each method raises `QuotaOutage` when Redis cannot do it."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def learn(self, deltas: Mapping[str, Delta]) -> None:
        """Add what was learned of models. After an outage, whether it was added is unknown."""
        rows = [_row(model, delta) for model, delta in deltas.items()]
        rules = (FEWEST_LESSONS, MOST_LESSONS, _COVERED, len(BOUNDS) - 1, MODELS, _KEEP_MS)
        for at in range(0, len(rows), _MODELS_A_CALL):
            batch = _ENCODER.encode(rows[at : at + _MODELS_A_CALL])
            await run(self._pipe, _LEARN, [_FACTS, _ESTIMATES, _MODELS], [batch, *rules])

    async def estimates(self) -> dict[str, Estimate]:
        """What is known of each model; empty when nothing is."""
        found = await self._call("HGETALL", _ESTIMATES)
        # A list in Redis' second protocol, a map in its third.
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return {model.decode(): _estimate(text) for model, text in pairs}

    async def say_shed(self, replica: str, share: int) -> None:
        """Say that this replica wants that share of the work shed, in thousandths, for the next `SHED_HOLD_MS`."""
        await run(self._pipe, _SHED, [_WISHES, _HIGHEST], [replica, share, SHED_HOLD_MS])

    async def shed(self) -> int:
        """The highest share that a replica wants shed, in thousandths."""
        return int(await self._call("GET", _HIGHEST) or 0)

    async def _call(self, *command: str) -> Any:
        try:
            return await self._pipe.call(*command)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error


def _row(model: str, delta: Delta) -> list[Any]:
    return [model, delta.lessons, delta.bytes, delta.millitokens, delta.answers]


def _estimate(text: bytes) -> Estimate:
    millibytes, bucket = map(int, text.split())
    return Estimate(
        millibytes=millibytes if millibytes > 0 else None, output_tokens=BOUNDS[bucket] if bucket >= 0 else None
    )
