"""Who is told of a request's steps while they happen? Everybody who watches it, through one reader of the logs.

The logs of all shards are read only while somebody watches. A step that a log has lost, trimmed or flushed, is not told
here: who watches must look the request up now and then (`control.request_events`).
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

import msgspec

from control.places import Places
from extproc import lifecycle_events
from extproc.lifecycle_events import RequestEvent
from quota.redis_log import RedisRequestLog
from quota.reservation import QuotaOutage

LOOK_SECONDS = 0.05
_RETRY_SECONDS = 0.5
# Enough for a page or two of each user. The connections that they hold to this process are counted by Envoy too.
MOST_WATCHES, MOST_OF_A_TENANT = 500, 100
# A life has at most four events; a log may say one twice.
_MOST_WAITING = 16


class _Subject(msgspec.Struct):
    subject: str


_SUBJECT = msgspec.json.Decoder(_Subject)


class Watch:
    """What is told of one request."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[RequestEvent] = asyncio.Queue(_MOST_WAITING)

    async def next(self, *, seconds: float) -> RequestEvent | None:
        """The next event; None when none has come in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._waiting.get()
        except TimeoutError:
            return None

    def tell(self, event: RequestEvent) -> None:
        """Hand on an event. One that nobody takes is dropped: the look-up finds it."""
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(event)


class Observers:
    """Everybody who watches a request in this process."""

    def __init__(self, log: RedisRequestLog) -> None:
        self._log = log
        self._watches: dict[str, set[Watch]] = defaultdict(set)
        self._places = Places(most=MOST_WATCHES, most_of_each=MOST_OF_A_TENANT)
        self._wanted = asyncio.Event()
        self._reading = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watching(self, request_id: str, tenant_id: str) -> AsyncIterator[Watch]:
        """Watch a request for a tenant: what happens after this is entered is told. Raises `NoPlace`.

        While the logs cannot be read it is entered all the same, and nothing is told.
        """
        with self._places.taken_by(tenant_id):
            watch = Watch()
            self._watches[request_id].add(watch)
            self._wanted.set()
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._reading.wait()
                yield watch
            finally:
                self._watches[request_id].discard(watch)
                if not self._watches[request_id]:
                    del self._watches[request_id]

    async def run(self) -> None:
        """Read the logs while somebody watches, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._read()
            except QuotaOutage:
                self._reading.clear()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _read(self) -> None:
        positions = await self._log.positions()
        self._reading.set()
        while self._watches:
            events, positions = await self._log.read(positions)
            for event in events:
                self._tell(event)
            await asyncio.sleep(LOOK_SECONDS)
        self._wanted.clear()
        self._reading.clear()

    def _tell(self, text: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):  # of a version that is not ours
            watches = self._watches.get(_SUBJECT.decode(text).subject)
            if watches:
                event = lifecycle_events.decode(text)
                for watch in watches:
                    watch.tell(event)
