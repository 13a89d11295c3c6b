"""How do the limits hold over all workers? The promise of `quota.reservation`, kept by one Redis script a decision.

Keys carry a version and the hash tag of a shard, `igw1:{07}:...`. All keys of an organization are in one shard, so
a script finds them on one node of a Redis Cluster; each shard has its own stream of settled events.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
from redis.exceptions import ResponseError

from quota.applied import AppliedLimits
from quota.facts import KnownFacts
from quota.pipe import Argument, Pipe
from quota.reservation import (
    Claim,
    Exceeded,
    Known,
    Overdue,
    Progress,
    QuotaOutage,
    Reservation,
    Settlement,
    Standing,
)
from quota.scripts import Script, load, run

SHARDS = 16
_PREFIX = "igw1"
_RESERVE, _SETTLE, _RENEW, _OVERDUE = load("reserve"), load("settle"), load("renew"), load("overdue")
_STANDINGS, _STOP = load("standings"), load("stop")
_REFUSED, _TAKEN, _OTHER_PERIOD, _NOT_WHOLE, _TOO_LATE = range(5)  # how an answer begins
# Longer than anybody waits for an admission: what Redis comes to after that would be for a caller that was refused.
_LATE_MS = 2000
_CLOCKS_DIFFER = frozenset({_OTHER_PERIOD, _TOO_LATE})
_NEVER = -1
_NUMBERS_OF_A_STANDING = 3
_OVERDUE_FIELDS = 4
_OPEN, _KNOWN_STATES = b"open", (b"open", b"settled")
_KNOWN_FIELDS = ("state", "admission", "stage", "events", "at", "ending", "stopping", "step")
_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(list[int]).decode


def shard_of(organization_id: str) -> int:
    """The shard that holds all keys of an organization."""
    return zlib.crc32(organization_id.encode()) % SHARDS


def key_of(shard: int, *parts: str) -> str:
    """A key of the shard; all keys in Redis are made here."""
    return ":".join((_PREFIX, f"{{{shard:02}}}", *parts))


def record_of(shard: int, request_id: str) -> str:
    """The record of a request."""
    return key_of(shard, "request", request_id)


def live_of(shard: int, tenant_id: str) -> str:
    """The index of a tenant's requests that the ledger does not have yet."""
    return key_of(shard, "live", tenant_id)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class RedisReservations:
    """Reservations that all workers share. The pipe is its owner's to close.

    `now_ms`, milliseconds since the epoch, only guesses which calendar periods Redis, whose clock counts, will need,
    and until when a reservation is of use.
    """

    def __init__(self, pipe: Pipe, now_ms: Callable[[], int] = _wall_ms) -> None:
        self._pipe = pipe
        self._now_ms = now_ms
        self._ahead_ms = 0  # Redis's clock of ours, when it mattered
        self._facts = KnownFacts()
        self._counters: WeakKeyDictionary[AppliedLimits, tuple[int, list[str]]] = WeakKeyDictionary()

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`."""
        shard = shard_of(claim.organization_id)
        keys = [
            *(record_of(shard, claim.request_id), key_of(shard, "leases"), key_of(shard, "epoch")),
            *(key_of(shard, "log"), live_of(shard, claim.tenant_id)),
        ]
        amounts, leasts = msgspec.structs.astuple(claim.amounts), msgspec.structs.astuple(claim.least)

        def arguments() -> list[Argument]:
            numbers = (claim.lease_ms, *amounts, *leasts, self._redis_ms() + _LATE_MS)
            return [claim.request_id, claim.admission, _ENCODE(numbers), claim.stage, claim.event]

        answer = await self._counting(_RESERVE, keys, arguments, (shard, claim.limits))
        return _reservation(answer) if answer[0] == _TAKEN else _exceeded(answer, claim.limits)

    async def settle(self, settlement: Settlement) -> bool:
        """See `Reservations.settle`."""
        shard = shard_of(settlement.organization_id)
        charges = _ENCODE(msgspec.structs.astuple(settlement.charges))
        how = "overdue" if settlement.only_if_overdue else "settle"
        progress = settlement.progress
        arguments: list[Argument] = [charges, settlement.ending, settlement.admission or b"", how]
        arguments += [key_of(shard, "tally", ""), progress.stage, progress.event, *progress.after]
        return await self._end(shard, settlement.request_id, arguments, [live_of(shard, settlement.tenant_id)])

    async def release(self, organization_id: str, request_id: str) -> bool:
        """See `Reservations.release`."""
        return await self._end(shard_of(organization_id), request_id, [_ENCODE(()), b"", b"", "release"])

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, progress: Progress) -> str | None:
        """See `Reservations.renew`."""
        shard = shard_of(organization_id)
        keys = [record_of(shard, request_id), key_of(shard, "leases"), key_of(shard, "log")]
        arguments: list[Argument] = [request_id, lease_ms, progress.events, progress.stage, progress.event]
        stopping = await run(self._pipe, _RENEW, keys, [*arguments, *progress.after])
        return None if stopping is None else stopping.decode()

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        """See `Reservations.stop`."""
        return bool(await run(self._pipe, _STOP, [record_of(shard_of(organization_id), request_id)], [why]))

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        """See `Reservations.find`."""
        command = ("HMGET", record_of(shard_of(organization_id), request_id), *_KNOWN_FIELDS)
        return _known(request_id, await self._ask(*command))

    async def open_of(self, organization_id: str, tenant_id: str, *, limit: int) -> list[Known]:
        """See `Reservations.open_of`. Two round trips, more when the index names what is gone."""
        shard = shard_of(organization_id)
        live, known = live_of(shard, tenant_id), dict[str, Known]()
        while len(known) < limit:
            named = [text.decode() for text in await self._ask("ZREVRANGE", live, len(known), limit - 1)]
            commands = (("HMGET", record_of(shard, each), *_KNOWN_FIELDS) for each in named)
            answers = await asyncio.gather(*(self._ask(*command) for command in commands))
            found = {each: _known(each, answer) for each, answer in zip(named, answers, strict=True)}
            known |= {each: one for each, one in found.items() if one is not None}
            gone = [each for each, one in found.items() if one is None]
            if not gone:
                break
            await self._ask("ZREM", live, *gone)
        return list(known.values())[:limit]

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        """See `Reservations.progress`. Few are open: one command finds them, however many are asked for."""
        by_shard: dict[int, list[str]] = {}
        for organization_id, request_id in requests:
            by_shard.setdefault(shard_of(organization_id), []).append(request_id)
        answers = await asyncio.gather(*(self._progress_in(shard, ids) for shard, ids in by_shard.items()))
        found = {request_id: events for answer in answers for request_id, events in answer}
        return [found.get(request_id) for _, request_id in requests]

    async def overdue(self, *, limit: int) -> list[Overdue]:
        """See `Reservations.overdue`."""
        answers = await asyncio.gather(*(self._overdue_in(shard, limit) for shard in range(SHARDS)))
        return [found for answer in answers for found in answer][:limit]

    async def held(self) -> int:
        """How many requests hold a reservation now. Raises QuotaOutage."""
        return sum(await asyncio.gather(*(self._ask("ZCARD", key_of(shard, "leases")) for shard in range(SHARDS))))

    async def standings(self, organization_id: str, limits: AppliedLimits) -> tuple[Standing, ...]:
        """See `Reservations.standings`."""
        shard = shard_of(organization_id)
        answer = await self._counting(_STANDINGS, [key_of(shard, "epoch")], list, (shard, limits))
        return _standings(answer[1:])

    async def _counting(
        self,
        script: Script,
        keys: list[str],
        arguments: Callable[[], list[Argument]],
        counted: tuple[int, AppliedLimits],
    ) -> list[int]:
        """The answer of a script that takes the counters and the facts of limits after all else."""
        shard, limits = counted
        keys = [*keys, *self._counters_of(shard, limits)]
        for _ in range(2):
            facts = self._facts.of(limits, self._redis_ms())
            answer = _DECODE(await run(self._pipe, script, keys, [*arguments(), facts.message]))
            if answer[0] not in _CLOCKS_DIFFER:
                break
            self._ahead_ms = answer[1] - self._now_ms()
        else:
            raise QuotaOutage("the clocks of Redis and of this machine do not agree")
        if answer[0] == _NOT_WHOLE:
            raise QuotaOutage("Redis has lost its data: its counters are not whole until they are rebuilt")
        return answer

    def _redis_ms(self) -> int:
        return self._now_ms() + self._ahead_ms

    def _counters_of(self, shard: int, limits: AppliedLimits) -> list[str]:
        known = self._counters.get(limits)
        if known is None or known[0] != shard:
            keys = [key_of(shard, "counter", each.counter) for each in limits.limits]
            known = self._counters[limits] = shard, keys
        return known[1]

    async def _progress_in(self, shard: int, request_ids: list[str]) -> list[tuple[str, int]]:
        scores = await self._ask("ZMSCORE", key_of(shard, "leases"), *request_ids)
        leased = [request_id for request_id, score in zip(request_ids, scores, strict=True) if score is not None]
        events = await asyncio.gather(*(self._ask("HGET", record_of(shard, each), "events") for each in leased))
        return [(request_id, int(count or 0)) for request_id, count in zip(leased, events, strict=True)]

    async def _overdue_in(self, shard: int, limit: int) -> list[Overdue]:
        flat = await run(self._pipe, _OVERDUE, [key_of(shard, "leases")], [limit, record_of(shard, "")])
        rows = [flat[at : at + _OVERDUE_FIELDS] for at in range(0, len(flat), _OVERDUE_FIELDS)]
        return [
            Overdue(request_id=request_id.decode(), admission=admission, events=int(events), stopping=stopping.decode())
            for request_id, admission, events, stopping in rows
        ]

    async def _end(self, shard: int, request_id: str, arguments: Sequence[Argument], live: Sequence[str] = ()) -> bool:
        keys = [record_of(shard, request_id), *(key_of(shard, name) for name in ("leases", "events", "log")), *live]
        return bool(await run(self._pipe, _SETTLE, keys, [request_id, *arguments]))

    async def _ask(self, *command: Argument) -> Any:
        try:
            return await self._pipe.call(*command)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error


def _known(request_id: str, fields: Sequence[bytes | None]) -> Known | None:
    state, admission, stage, events, at_ms, ending, stopping, step = fields
    if state not in _KNOWN_STATES or admission is None:  # without one, the ledger has it
        return None
    return Known(
        request_id=request_id,
        admission=admission,
        stage=(stage or b"").decode(),
        events=int(events or 0),
        at_ms=None if at_ms is None else int(at_ms),
        ending=None if state == _OPEN else ending,
        stopping=(stopping or b"").decode(),
        step=b"" if step is None or state != _OPEN else step,
    )


def _reservation(answer: list[Any]) -> Reservation:
    _, at_ms, count, *rest = answer
    end = count + count * _NUMBERS_OF_A_STANDING
    return Reservation(
        at_ms=at_ms,
        taken=tuple(rest[:count]),
        standings=_standings(rest[count:end]),
        shadowed=tuple(rest[end:]),
    )


def _exceeded(answer: list[int], limits: AppliedLimits) -> Exceeded:
    _, index, used, demanded, retry_after_ms, *standings = answer
    return Exceeded(
        limit=limits.limits[index],
        used=used,
        demanded=demanded,
        retry_after_ms=None if retry_after_ms == _NEVER else retry_after_ms,
        standings=_standings(standings),
    )


def _standings(numbers: list[int]) -> tuple[Standing, ...]:
    one = iter(numbers)
    return tuple(map(Standing._make, zip(one, one, one, strict=True)))
