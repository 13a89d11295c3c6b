"""How do settled requests wait for the ledger? In a stream of each shard, read by one consumer group.

A stream holds what the ledger has not acknowledged yet, and nothing else: that is what bounds it.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from quota.pipe import Argument, Pipe
from quota.redis import SHARDS, key_of, live_of, record_of
from quota.reservation import QuotaOutage, SettledEvent

_RESERVED_AT = b"at"
_LEFT, _NEW = "0", ">"  # what a stream gives: what was read and not acknowledged, or what nobody has read
# A read that waits looks again this often. It does not block in Redis: a node of a cluster blocks for one shard only,
# and who shares the connection would wait behind it.
_LOOK_SECONDS = 0.2
# A shard that cannot be asked keeps the others waiting for one deadline; it is left out for this long.
_AWAY_SECONDS = 1.0
_MOST_TAKEN = 1000

_Command = Sequence[Argument]


class _Named(msgspec.Struct):
    """What names a request's keys, of its admission."""

    request_id: str
    tenant_id: str


_NAMES = msgspec.json.Decoder(_Named)


class RedisSettledEvents:
    """The streams of settled requests of all shards, read by one consumer group.

    `consumer` names this reader: a reader that comes back under its name first gets what it had not acknowledged.
    What a reader left that never came back is taken over after `takeover_ms`. The pipe is its owner's to close.
    """

    GROUP = "ledger"

    def __init__(self, pipe: Pipe, *, consumer: str, takeover_ms: int = 30_000) -> None:
        self._pipe = pipe
        self._consumer = consumer
        self._takeover_ms = takeover_ms
        self._streams = {key_of(shard, "events"): shard for shard in range(SHARDS)}
        self._reading: dict[str, str] = {}  # what each stream gives next; a stream without a group is not in it
        self._away_until: dict[str, float] = {}
        self._next_takeover = 0.0

    @property
    def away(self) -> frozenset[int]:
        """The shards that could not be asked; their events wait in Redis."""
        return frozenset(self._streams[stream] for stream in self._away_until)

    async def read(self, *, count: int, wait_ms: int) -> list[SettledEvent]:
        """See `SettledEvents.read`. What was read and not acknowledged comes first, after a restart or an error.

        `count` is for each shard. A shard that cannot be asked is left out; raises QuotaOutage when none can be asked.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_ms / 1000
        while True:
            try:
                found = await self._look(count)
            except QuotaOutage:
                self.read_again()
                raise
            left = until - loop.time()
            if found or left <= 0:
                return found
            await asyncio.sleep(min(_LOOK_SECONDS, left))

    def read_again(self) -> None:
        """Begin with what was read and not acknowledged, this reader's or another's that is gone."""
        self._reading.clear()
        self._away_until.clear()

    async def acknowledge(self, events: Sequence[SettledEvent]) -> None:
        """See `SettledEvents.acknowledge`. Raises QuotaOutage when a shard cannot be asked; the others have done it."""
        by_stream: dict[str, list[str]] = {}
        for event in events:
            by_stream.setdefault(key_of(event.shard, "events"), []).append(event.id)
        await self._forget(by_stream)
        await self._drop_live(events)

    async def backlog(self) -> int:
        """How many settled requests are not in the ledger yet."""
        return sum(_whole(await self._ask([("XLEN", stream) for stream in self._streams])))

    async def _look(self, count: int) -> list[SettledEvent]:
        await self._prepare()
        while self._reading:
            found, left_over = [], False
            for stream, entries in (await self._entries(count)).items():
                found += [_event(self._streams[stream], entry) for entry in entries if entry[1]]
                await self._forget_deleted(stream, entries)
                if not entries and self._reading[stream] == _LEFT:
                    self._reading[stream], left_over = _NEW, True
            if found or not left_over:
                return found
        return []

    async def _entries(self, count: int) -> dict[str, list[Any]]:
        """What each stream gives; one that fails is not in it, and is prepared anew before it is read again."""
        groups = [list(self._reading)] if self._pipe.one_server else [[stream] for stream in self._reading]
        answers = await self._ask([self._command(streams, count) for streams in groups])
        given: dict[str, list[Any]] = {}
        for streams, answer in zip(groups, answers, strict=True):
            if isinstance(answer, Exception):
                self._lose(streams, answer)
            else:
                given |= {stream: [] for stream in streams} | _by_stream(answer)
        self._require_some(answers)
        return given

    def _command(self, streams: Sequence[str], count: int) -> _Command:
        positions = [self._reading[stream] for stream in streams]
        return ("XREADGROUP", "GROUP", self.GROUP, self._consumer, "COUNT", count, "STREAMS", *streams, *positions)

    async def _prepare(self) -> None:
        now = asyncio.get_running_loop().time()
        missing = [
            name for name in self._streams if name not in self._reading and self._away_until.get(name, now) <= now
        ]
        # From its beginning: what was appended while the group was gone, after a flush, is in it.
        made = await self._ask([("XGROUP", "CREATE", name, self.GROUP, "0", "MKSTREAM") for name in missing])
        for stream, answer in zip(missing, made, strict=True):
            if isinstance(answer, Exception) and not str(answer).startswith("BUSYGROUP"):
                self._lose([stream], answer)
            else:
                self._reading[stream] = _LEFT
                self._away_until.pop(stream, None)
        if not self._reading:
            self._require_some(made)
        if now >= self._next_takeover:
            self._next_takeover = now + self._takeover_ms / 1000
            await asyncio.gather(*(self._take_over(stream) for stream in list(self._reading)))

    async def _take_over(self, stream: str) -> None:
        """Make ours what another reader has left for too long."""
        command = ("XAUTOCLAIM", stream, self.GROUP, self._consumer, self._takeover_ms)
        start: bytes = b"0-0"
        while True:
            [answer] = await self._ask([(*command, start, "COUNT", _MOST_TAKEN, "JUSTID")])
            if isinstance(answer, Exception):
                self._lose([stream], answer)
                return
            start, claimed, *_ = answer
            if claimed:
                self._reading[stream] = _LEFT
            if start == b"0-0":
                return

    async def _forget_deleted(self, stream: str, entries: Iterable[Any]) -> None:
        # Its reader was interrupted between the two steps of `_forget`.
        if deleted := [entry[0] for entry in entries if not entry[1]]:
            await self._forget({stream: deleted})

    async def _forget(self, ids: dict[str, list[Any]]) -> None:
        # Deleted first: an entry that is only acknowledged would stay for ever, and nobody would be given it again.
        _whole(await self._ask([("XDEL", stream, *those) for stream, those in ids.items()]))
        _whole(await self._ask([("XACK", stream, self.GROUP, *those) for stream, those in ids.items()]))

    async def _drop_live(self, events: Sequence[SettledEvent]) -> None:
        """The ledger answers for these now. What this leaves behind, should it fail, expires with the records."""
        records, live = [], dict[str, list[str]]()
        for event in events:
            try:
                named = _NAMES.decode(event.admission)
            except (msgspec.DecodeError, UnicodeDecodeError):  # what cannot be written in the ledger either
                continue
            records.append(record_of(event.shard, named.request_id))
            live.setdefault(live_of(event.shard, named.tenant_id), []).append(named.request_id)
        await self._ask(
            [("HDEL", record, "admission", "ending") for record in records]
            + [("ZREM", index, *ids) for index, ids in live.items()]
        )

    async def _ask(self, commands: Sequence[_Command]) -> list[Any]:
        """The answers, errors among them; the commands share a round trip."""
        return await asyncio.gather(*(self._pipe.call(*command) for command in commands), return_exceptions=True)

    def _lose(self, streams: Iterable[str], why: Exception) -> None:
        for stream in streams:
            self._reading.pop(stream, None)
            if not isinstance(why, ResponseError):  # an answer, such as that the group is gone: ask again at once
                self._away_until[stream] = asyncio.get_running_loop().time() + _AWAY_SECONDS

    def _require_some(self, answers: Sequence[Any]) -> None:
        """Raise the outage when no shard could be asked."""
        if not self._reading:
            _whole(answers)


def _whole(answers: Sequence[Any]) -> Sequence[Any]:
    for answer in answers:
        if isinstance(answer, QuotaOutage):
            raise answer
        if isinstance(answer, ResponseError):
            raise QuotaOutage(f"Redis could not do it: {answer}") from answer
        if isinstance(answer, BaseException):
            raise answer
    return answers


def _by_stream(answer: Any) -> dict[str, list[Any]]:
    # Nothing, a map (RESP3) or pairs (RESP2).
    pairs = answer.items() if isinstance(answer, dict) else answer or ()
    return {stream.decode(): entries for stream, entries in pairs}


def _event(shard: int, entry: Any) -> SettledEvent:
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return SettledEvent(
        id=entry_id.decode(),
        shard=shard,
        admission=fields[b"admission"],
        ending=fields[b"ending"],
        reserved_ms=int(fields[_RESERVED_AT]) if _RESERVED_AT in fields else None,
    )
