"""How do refused credentials reach the audit trail? They wait in the worker's memory and are written in batches.

The same credential, refused for the same reason from the same address on the same path again and again, is one row for
each batch, with how often it was. What waits in a worker that is killed is lost: half a second's refusals.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from authz.service import RefusedCredential
from store.audit import Actor, Change, append_all
from store.database import DatabaseOutage, Pool

ACTION = "credential.refused"
_CAPACITY = 10_000
_BATCH = 500
_FLUSH_SECONDS = 0.5
_RETRY_SECONDS = 2.0

Kind = tuple[str, str, str, str, str]


@dataclass(slots=True)
class _Waiting:
    first: RefusedCredential
    at: datetime
    times: int = 1


class RefusedCredentials:
    """Refusals that wait to be written. `now` gives aware times; `observe_dropped` is told of those without room."""

    def __init__(
        self, pool: Pool, *, pepper: bytes, now: Callable[[], datetime], observe_dropped: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._pepper = pepper
        self._now = now
        self._observe_dropped = observe_dropped
        self._waiting: dict[Kind, _Waiting] = {}

    def note(self, refused: RefusedCredential) -> None:
        """Take a refusal in; never waits."""
        kind = (refused.fingerprint, refused.reason.code, refused.address, refused.method, refused.path)
        waiting = self._waiting.get(kind)
        if waiting is not None:
            waiting.times += 1
        elif len(self._waiting) < _CAPACITY:
            self._waiting[kind] = _Waiting(refused, self._now())
        else:
            self._observe_dropped()

    async def run(self) -> None:
        """Write until cancelled; an outage of Postgres is waited out."""
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self.flush()
            except DatabaseOutage:
                await asyncio.sleep(_RETRY_SECONDS)

    async def flush(self) -> None:
        """Write everything that waits; raises `DatabaseOutage`, and what was not written goes on waiting."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:_BATCH])
            for kind in batch:
                del self._waiting[kind]
            try:
                await append_all(self._pool, [_entry(waiting) for waiting in batch.values()], pepper=self._pepper)
            except BaseException:
                self._waiting = {**batch, **self._waiting}
                raise


def _entry(waiting: _Waiting) -> tuple[Actor, datetime, Change]:
    refused = waiting.first
    actor = Actor(name=refused.fingerprint, source=refused.address, request_id=refused.request_id or None)
    change = Change(
        action=ACTION,
        subject=refused.fingerprint,
        tenant_id=refused.tenant_id,
        after={
            "reason": refused.reason.code,
            "method": refused.method,
            "path": refused.path,
            "times": waiting.times,
        },
    )
    return actor, waiting.at, change
