"""How do the limits hold over all workers? The promise of `quota.reservation`, kept by one Redis script a decision.

Keys carry a version and the hash tag of a shard, `igw1:{07}:...`. All keys of an organization are in one shard, so
a script finds them on one node of a Redis Cluster; each shard has its own stream of settled events.
"""

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from quota.pipe import Argument, RedisPipe
from quota.reservation import (
    Claim,
    Demand,
    Exceeded,
    Overdue,
    QuotaOutage,
    Reservation,
    SettledEvent,
    Settlement,
)
from quota.scripts import Script, load, run

SHARDS = 16
_PREFIX = "igw1"
_RESERVE, _SETTLE, _RENEW, _OVERDUE = load("reserve"), load("settle"), load("renew"), load("overdue")
_TAKEN = 1
_OVERDUE_FIELDS = 3


def shard_of(organization_id: str) -> int:
    """The shard that holds all keys of an organization."""
    return zlib.crc32(organization_id.encode()) % SHARDS


def key_of(shard: int, *parts: str) -> str:
    """A key of the shard; all keys in Redis are made here."""
    return ":".join((_PREFIX, f"{{{shard:02}}}", *parts))


def _record(shard: int, request_id: str) -> str:
    return key_of(shard, "request", request_id)


class RedisReservations:
    """Reservations that all workers share. No call waits longer than `deadline` seconds.

    They use one connection of their own, made as `redis` would make it.
    """

    def __init__(self, redis: Redis, *, deadline: float) -> None:
        self._pipe = RedisPipe(redis.connection_pool.make_connection, deadline=deadline)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._pipe.aclose()

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        """See `Reservations.reserve`."""
        shard = shard_of(claim.organization_id)
        keys = [_record(shard, claim.request_id), key_of(shard, "leases")]
        arguments: list[Argument] = [claim.request_id, claim.admission, claim.lease_ms]
        for demand in claim.demands:
            keys.append(key_of(shard, "limit", demand.subject, demand.limit.name))
            arguments += _demand_arguments(demand)
        answer = await self._run(_RESERVE, keys, arguments)
        if answer[0] == _TAKEN:
            return Reservation(at_ms=answer[1], taken=tuple(answer[2:]))
        _, index, used, retry_after_ms = answer
        return Exceeded(
            limit=claim.demands[index - 1].limit,
            used=used,
            retry_after_ms=None if retry_after_ms < 0 else retry_after_ms,
        )

    async def settle(self, settlement: Settlement) -> bool:
        """See `Reservations.settle`."""
        tokens: Argument = "" if settlement.tokens is None else settlement.tokens
        arguments = [tokens, settlement.ending, settlement.admission or b"", int(settlement.only_if_overdue)]
        return await self._end(settlement.organization_id, settlement.request_id, [*arguments, "settle"])

    async def release(self, organization_id: str, request_id: str) -> bool:
        """See `Reservations.release`."""
        return await self._end(organization_id, request_id, ["", b"", b"", 0, "release"])

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, events: int) -> bool:
        """See `Reservations.renew`."""
        shard = shard_of(organization_id)
        keys = [_record(shard, request_id), key_of(shard, "leases")]
        return bool(await self._run(_RENEW, keys, [request_id, lease_ms, events]))

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        """See `Reservations.progress`. Few are open: one command finds them, however many are asked for."""
        by_shard: dict[int, list[str]] = {}
        for organization_id, request_id in requests:
            by_shard.setdefault(shard_of(organization_id), []).append(request_id)
        answers = await asyncio.gather(*(self._progress_in(shard, ids) for shard, ids in by_shard.items()))
        found = {request_id: events for answer in answers for request_id, events in answer}
        return [found.get(request_id) for _, request_id in requests]

    async def _progress_in(self, shard: int, request_ids: list[str]) -> list[tuple[str, int]]:
        try:
            scores = await self._pipe.call("ZMSCORE", key_of(shard, "leases"), *request_ids)
            leased = [request_id for request_id, score in zip(request_ids, scores, strict=True) if score is not None]
            events = await asyncio.gather(
                *(self._pipe.call("HGET", _record(shard, request_id), "events") for request_id in leased)
            )
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error
        return [(request_id, int(count or 0)) for request_id, count in zip(leased, events, strict=True)]

    async def overdue(self, *, limit: int) -> list[Overdue]:
        """See `Reservations.overdue`."""
        answers = await asyncio.gather(*(self._overdue_in(shard, limit) for shard in range(SHARDS)))
        return [found for answer in answers for found in answer][:limit]

    async def _overdue_in(self, shard: int, limit: int) -> list[Overdue]:
        flat = await self._run(_OVERDUE, [key_of(shard, "leases")], [limit, _record(shard, "")])
        rows = [flat[at : at + _OVERDUE_FIELDS] for at in range(0, len(flat), _OVERDUE_FIELDS)]
        return [
            Overdue(request_id=request_id.decode(), admission=admission, events=int(events))
            for request_id, admission, events in rows
        ]

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        return await run(self._pipe, script, keys, arguments)

    async def _end(self, organization_id: str, request_id: str, arguments: list[Argument]) -> bool:
        shard = shard_of(organization_id)
        keys = [_record(shard, request_id), key_of(shard, "leases"), key_of(shard, "events")]
        return bool(await self._run(_SETTLE, keys, [request_id, *arguments]))


def _demand_arguments(demand: Demand) -> list[Argument]:
    limit = demand.limit
    return [limit.unit.value, limit.slice_ms, limit.live_slices, limit.ceiling, demand.amount, demand.least]


class RedisSettledEvents:
    """The streams of settled requests of all shards, read by one consumer group.

    `consumer` names this reader: a reader that comes back under its name first gets what it had not acknowledged.
    What a reader left that never came back is taken over after `takeover_ms`.
    """

    GROUP = "ledger"

    def __init__(self, redis: Redis, *, consumer: str, takeover_ms: int = 30_000) -> None:
        self._redis = redis
        self._consumer = consumer
        self._takeover_ms = takeover_ms
        self._streams: dict[bytes, int] = {key_of(shard, "events").encode(): shard for shard in range(SHARDS)}
        self._ready = False
        self._next_takeover = 0.0
        self._unread: dict[Any, Any] = dict.fromkeys(self._streams, "0")

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """See `SettledEvents.read`. What was read and not acknowledged comes first, after a restart or an error."""
        try:
            await self._prepare()
            answer: Any = await self._redis.xreadgroup(
                self.GROUP, self._consumer, self._unread, count=count, block=wait_ms or None
            )
        except (RedisError, OSError) as error:
            self.read_again()
            raise QuotaOutage(f"Redis could not be asked: {error}") from error
        found = [
            SettledEvent(
                id=entry_id.decode(),
                shard=self._streams[stream],
                admission=fields[b"admission"],
                ending=fields[b"ending"],
            )
            for stream, entries in answer
            for entry_id, fields in entries
            if fields
        ]
        if not found and ">" not in self._unread.values():
            self._unread = dict.fromkeys(self._streams, ">")
        return found

    def read_again(self) -> None:
        """Begin with what was read and not acknowledged, this reader's or another's that is gone."""
        self._ready = False
        self._unread = dict.fromkeys(self._streams, "0")

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """See `SettledEvents.acknowledge`."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for event in events:
                stream = key_of(event.shard, "events")
                pipeline.xack(stream, self.GROUP, event.id)
                pipeline.xdel(stream, event.id)
            await pipeline.execute()
        except (RedisError, OSError) as error:
            raise QuotaOutage(f"Redis could not be asked: {error}") from error

    async def backlog(self) -> int:
        """How many settled requests are not in the ledger yet."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for stream in self._streams:
                pipeline.xlen(stream)
            return sum(await pipeline.execute())
        except (RedisError, OSError) as error:
            raise QuotaOutage(f"Redis could not be asked: {error}") from error

    async def _prepare(self) -> None:
        if not self._ready:
            for stream in self._streams:
                await self._create_group(stream)
            self._ready = True
        now = asyncio.get_running_loop().time()
        if now >= self._next_takeover:
            self._next_takeover = now + self._takeover_ms / 1000
            taken = [await self._take_over(stream) for stream in self._streams]
            if any(taken):
                self._unread = dict.fromkeys(self._streams, "0")

    async def _create_group(self, stream: bytes) -> None:
        try:
            await self._redis.xgroup_create(stream, self.GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _take_over(self, stream: bytes) -> bool:
        """Make ours what another reader has left for too long; whether there was anything."""
        start, found = b"0-0", False
        while True:
            start, claimed, *_ = await self._redis.xautoclaim(
                stream, self.GROUP, self._consumer, min_idle_time=self._takeover_ms, start_id=start, count=1000
            )
            found = found or bool(claimed)
            if start == b"0-0":
                return found
