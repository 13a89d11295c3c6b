"""Who sends what waits in the outbox of webhooks? A sender in each controller; several share the work.

What is sent is the CloudEvent of the request's end, made of its row in the ledger. An endpoint that is slow or away has
its own few places, and holds up no other.
"""

import asyncio
import contextlib
import itertools
import platform
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import random

from extproc.lifecycle_events import encode, ended
from sidecar import webhook_signature
from sidecar.logs import Logger
from sidecar.webhook_retries import Answer, Fate, Random, decide
from store import ledger, webhook_deliveries, webhook_upkeep, webhooks
from store.audit import Actor, Trail
from store.database import DatabaseOutage, Pool
from store.webhook_deliveries import Claimed, Failure, Room
from store.webhook_upkeep import Backlog
from store.webhooks import WebhookName

MOST_AT_ONCE = 64
MOST_OF_EACH = 4
LEASE = timedelta(seconds=60)
"""Longer than an attempt with all that Postgres may take before and after it."""
_SHOW_SECONDS = 5.0
_TURNS_A_SWEEP = 12
_NO_ROW = "the ledger has the request no more"
_NO_SECRET = "the secret was stored with another pepper"  # noqa: S105 - says that it is none
_OUR_FAULT = "the gateway failed to send it"

Post = Callable[[str, Sequence[tuple[str, str]], bytes], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a sender works with. `now` gives aware times; `pause_seconds` is how soon it sees what has become due."""

    pepper: bytes = field(repr=False)
    now: Callable[[], datetime]
    random: Random = random
    pause_seconds: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Watchers:
    """Who is told what: of each attempt its fate, now and then of the backlog, and of what nobody expected."""

    fate: Callable[[Fate, int], None]
    backlog: Callable[[Backlog], None]
    error: Callable[[Exception], None]
    logger: Logger


class WebhookSender:
    """Claims what is due and posts it, until it is cancelled; what it then had is sent when its lease has run out."""

    def __init__(self, pool: Pool, post: Post, options: Options, watchers: Watchers) -> None:
        self._pool = pool
        self._post = post
        self._options = options
        self._watchers = watchers
        self._flying: Counter[str] = Counter()
        self._freed = asyncio.Event()
        self._outage = ""

    async def run(self) -> None:
        """Send until cancelled; an outage of Postgres is waited out."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_up())
            while True:
                self._freed.clear()
                for claimed in await self._claimed():
                    self._flying[claimed.webhook_id] += 1
                    tasks.create_task(self._deliver(claimed))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._options.pause_seconds):
                        await self._freed.wait()

    async def _claimed(self) -> list[Claimed]:
        total = MOST_AT_ONCE - self._flying.total()
        if not total:
            return []
        room = Room(total=total, each=MOST_OF_EACH, flying=dict(self._flying))
        now = self._options.now()
        try:
            found = await webhook_deliveries.claim(
                self._pool, room, now=now, until=now + LEASE, pepper=self._options.pepper
            )
        except DatabaseOutage as error:
            self._note(str(error))
            return []
        self._note("")
        return found

    async def _deliver(self, claimed: Claimed) -> None:
        try:
            await self._settle(claimed, await self._attempt(claimed))
        except DatabaseOutage as error:  # it is sent again, under the same id, when its lease has run out
            self._note(str(error))
        finally:
            self._flying[claimed.webhook_id] -= 1
            self._flying += Counter()  # forgets those at 0
            self._freed.set()

    async def _attempt(self, claimed: Claimed) -> Answer:
        try:
            return await self._send(claimed)
        except DatabaseOutage:
            raise
        except Exception as error:  # noqa: BLE001 - one that cannot be sent must not end all others
            self._watchers.error(error)
            return Answer(error=_OUR_FAULT)

    async def _send(self, claimed: Claimed) -> Answer:
        if not claimed.secrets:
            return Answer(error=_NO_SECRET)
        record = await ledger.find(self._pool, claimed.request_id)
        if record is None:
            return Answer(error=_NO_ROW, hopeless=True)
        event = ended(record.admission, record.ending)
        body = encode(event)
        signed = webhook_signature.headers(event.id, self._options.now(), body, claimed.secrets)
        return await self._post(claimed.url, signed, body)

    async def _settle(self, claimed: Claimed, answer: Answer) -> None:
        now = self._options.now()
        decision = decide(answer, attempts=claimed.attempts, now=now, random=self._options.random)
        if decision.fate is Fate.DELIVERED and answer.status is not None:
            await webhook_deliveries.delivered(self._pool, claimed, status=answer.status, now=now)
        else:
            failure = Failure(status=answer.status, error=answer.error, next_at=decision.next_at)
            await webhook_deliveries.failed(self._pool, claimed, failure, now=now)
        if decision.fate is Fate.DISABLED:
            await self._disable(claimed.webhook_id, now)
        self._watchers.fate(decision.fate, 1)

    async def _disable(self, webhook_id: str, now: datetime) -> None:
        trail = Trail(Actor(name="system", source=platform.node()), pepper=self._options.pepper, now=lambda: now)
        if await webhooks.disable(self._pool, WebhookName(id=webhook_id), now=now, trail=trail):
            self._watchers.logger.warning("its endpoint is gone", action="webhook_disabled", webhook=webhook_id)

    async def _keep_up(self) -> None:
        """Show how much waits, and now and then throw away what is done."""
        for turn in itertools.count():
            now = self._options.now()
            try:
                self._watchers.backlog(await webhook_upkeep.backlog(self._pool, now))
                if turn % _TURNS_A_SWEEP == 0:
                    self._watchers.fate(Fate.DEAD, (await webhook_upkeep.sweep(self._pool, now)).dead)
            except DatabaseOutage as error:
                self._note(str(error))
            await asyncio.sleep(_SHOW_SECONDS)

    def _note(self, outage: str) -> None:
        """Say each outage once."""
        if outage and outage != self._outage:
            self._watchers.logger.warning("webhooks wait", action="webhooks_waiting", reason=outage)
        self._outage = outage
