"""How are the counters in Redis made to agree with the ledger? By consistent cuts, and by corrections that add.

A cut reads counters and the place in the stream of settled events at one moment: what was settled up to that place is
what the counters hold beside what running requests have reserved. What the ledger says otherwise is added as a
difference, which is right whatever was reserved and settled since.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from quota.drift import Correction, Held, Slice
from quota.epochs import epochs
from quota.pipe import Argument, Pipe
from quota.redis import key_of, shard_of
from quota.reservation import QuotaOutage
from quota.scripts import load, run

_CUT, _REPAIR, _CHARGE = load("cut"), load("repair"), load("charge")
_SEQUENCES_A_MILLISECOND = 1_000_000  # as in `quota.reservation.SettledEvent.sequence`
# Redis does nothing else while it corrects: so many take it a few milliseconds.
_CORRECTIONS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Counters of a shard at one moment, `at_ms` by Redis' clock.

    What had been settled has a `SettledEvent.sequence` up to `sequence`. `whole`: the shard's epoch was there.
    `token` is for `repair`, `charged` for `charged_since`.
    """

    shard: int
    at_ms: int
    token: bytes
    sequence: int
    charged: bytes
    whole: bool
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a request takes of a counter, in the slice of its admission."""

    counter: str
    slice: Slice
    amount: int


class RedisRepair:
    """Compares and corrects counters. Every method raises `QuotaOutage` when Redis cannot be asked."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def lost(self) -> list[int]:
        """The shards whose counters are not whole: their epoch is gone. Those that cannot be asked are left out."""
        return [shard for shard, epoch in (await epochs(self._pipe)).items() if epoch is None]

    async def cut(self, shard: int, counters: Sequence[str]) -> Cut:
        """Read the counters, by their names."""
        keys = [_token(shard), key_of(shard, "events"), _charged(shard), key_of(shard, "epoch")]
        keys += [_counter(shard, name) for name in counters]
        answer = await run(self._pipe, _CUT, keys, [_new_token()])
        at_ms, token, last_id, charged, epoch, *hashes = answer
        return Cut(
            shard=shard,
            at_ms=at_ms,
            token=token,
            # What is appended later has a later id, or, in a stream that a flush has emptied, a later millisecond.
            sequence=max(_sequence(last_id), at_ms * _SEQUENCES_A_MILLISECOND - 1),
            charged=charged,
            whole=bool(epoch),
            held=tuple(map(_held, hashes)),
        )

    async def in_ledger(self, cut: Cut) -> bool:
        """Whether the ledger has acknowledged all that had been settled at the cut."""
        milliseconds, number = divmod(cut.sequence, _SEQUENCES_A_MILLISECOND)
        left = await self._ask("XRANGE", key_of(cut.shard, "events"), "-", f"{milliseconds}-{number}", "COUNT", 1)
        return not left

    async def charged_since(self, cut: Cut) -> list[str]:
        """The requests that were charged afterwards, since the cut, by id."""
        found = await self._ask("ZRANGEBYSCORE", _charged(cut.shard), b"(" + cut.charged, "+inf")
        return [request_id.decode() for request_id in found]

    async def repair(self, cut: Cut, corrections: Sequence[Correction], *, whole: bool = False) -> bool:
        """Make the corrections, and with `whole` set the shard's epoch in the end.

        False when somebody else has repaired the shard since the cut, or Redis was flushed: then take a new cut. Some
        corrections may have been made; the new cut shows them.
        """
        token = cut.token
        starts = range(0, len(corrections), _CORRECTIONS_AT_ONCE) or (0,)
        parts = [corrections[start : start + _CORRECTIONS_AT_ONCE] for start in starts]
        for number, part in enumerate(parts, 1):
            following, epoch = _new_token(), _new_token() if whole and number == len(parts) else ""
            keys = [_token(cut.shard), key_of(cut.shard, "epoch")]
            keys += [_counter(cut.shard, each.counter) for each in part]
            arguments = [argument for each in part for argument in _arguments(each)]
            if not await run(self._pipe, _REPAIR, keys, [token, following, epoch, *arguments]):
                return False
            token = following.encode()
        return True

    async def charge(self, organization_id: str, request_id: str, charges: Sequence[Charge]) -> bool:
        """Charge a request that no counter holds. True for the one call that did it, False for every other."""
        shard = shard_of(organization_id)
        keys = [_charged(shard), *(_counter(shard, each.counter) for each in charges)]
        arguments: list[Argument] = [request_id]
        for each in charges:
            arguments += [each.slice.number, each.amount, each.slice.oldest, each.slice.starts_ms, each.slice.ends_ms]
        return bool(await run(self._pipe, _CHARGE, keys, arguments))

    async def _ask(self, *command: Argument) -> Any:
        try:
            return await self._pipe.call(*command)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error


def _token(shard: int) -> str:
    return key_of(shard, "repair")


def _charged(shard: int) -> str:
    return key_of(shard, "charged")


def _counter(shard: int, name: str) -> str:
    return key_of(shard, "counter", name)


def _new_token() -> str:
    return secrets.token_hex(8)


def _sequence(event_id: bytes) -> int:
    milliseconds, _, number = event_id.partition(b"-")
    return int(milliseconds) * _SEQUENCES_A_MILLISECOND + int(number)


def _held(flat: Sequence[bytes]) -> Held:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    amounts = {int(name): int(value) for name, value in fields.items() if name.isdigit()}
    reserved = {number: int(fields.get(b"r%d" % number, 0)) for number in amounts}
    return Held(
        settled={number: amount - reserved[number] for number, amount in amounts.items()},
        unexplained=int(fields.get(b"sum", 0)) - sum(amounts.values()),
    )


def _arguments(each: Correction) -> list[Argument]:
    place = each.slice
    return [place.number, each.difference, place.oldest, place.starts_ms, place.ends_ms, each.level]
