"""How does the wish to stop a request reach the worker that holds it? By a stream that every worker follows.

Which worker holds a request nobody knows: every one is told, and the others have nothing to stop. What a worker has
missed all the same it learns when it renews the request, on whose record the wish is noted (`Reservations.stop`).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from redis.exceptions import ResponseError

from quota.pipe import Pipe
from quota.redis import key_of
from quota.reservation import QuotaOutage
from quota.stream_reply import Entry, entries_of, entry, place_of

FOLLOW_DEADLINE_SECONDS = 3.0
"""The deadline of a pipe to follow with: longer than a read waits in Redis."""
_BLOCK_MS = 1000
_LENGTH = 10_000
_AT_ONCE = 1000
_RETRY_SECONDS = 0.1
_STREAM = key_of(0, "stops")
_NONE: Entry = ("0-0", {})


class RedisStops:
    """Asks for stops, and follows what is asked. The pipe is its owner's to close.

    A read waits in Redis, and what is asked over the same pipe waits behind it: who follows has a pipe of his own, with
    a deadline of FOLLOW_DEADLINE_SECONDS.
    """

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def ask(self, request_id: str, why: str) -> None:
        """Ask whoever holds the request to stop it. Raises QuotaOutage."""
        try:
            await self._pipe.call("XADD", _STREAM, "MAXLEN", "~", _LENGTH, "*", "request", request_id, "why", why)
        except ResponseError as error:
            raise QuotaOutage(f"Redis could not do it: {error}") from error

    async def follow(self) -> AsyncIterator[tuple[str, str]]:
        """The requests that somebody asks to stop, and why, from now on. Endless; an outage is waited out.

        What was asked during an outage comes after it. When Redis has lost its data, some may come again.
        """
        seen: Entry | None = None
        while True:
            try:
                if seen is None:
                    seen = await self._last()
                found = await self._read(seen[0])
                if not found and _lost(seen, await self._last()):
                    seen = _NONE
            except (QuotaOutage, ResponseError):  # such as UNBLOCKED, of a primary that was demoted
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            for seen in found:
                fields = seen[1]
                if b"request" in fields and b"why" in fields:
                    yield fields[b"request"].decode(), fields[b"why"].decode()

    async def _read(self, place: str) -> list[Entry]:
        answer: Any = await self._pipe.call("XREAD", "COUNT", _AT_ONCE, "BLOCK", _BLOCK_MS, "STREAMS", _STREAM, place)
        return entries_of(answer).get(_STREAM, [])

    async def _last(self) -> Entry:
        answer = await self._pipe.call("XREVRANGE", _STREAM, "+", "-", "COUNT", 1)
        return entry(answer[0]) if answer else _NONE


def _lost(seen: Entry, last: Entry) -> bool:
    """Whether Redis was flushed or restored since `seen`, so that all that is there now is new.

    Its clock may be behind, or in the same millisecond: ids begin anew with each, and another entry has the id.
    """
    return place_of(last[0]) <= place_of(seen[0]) and last != seen
