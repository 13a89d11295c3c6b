"""How do refused credentials reach the audit trail? They wait in the worker's memory and are written in batches.

The first refusal of a credential, for a reason, from an address, on a route, is written at once. What follows of the
same kind is counted, and is one row each ten seconds: nobody fills the trail by being refused. What waits in a worker
that is killed is lost.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from authz.service import RefusedCredential
from store.audit import Actor, Change, append_all
from store.database import DatabaseOutage, Pool

ACTION = "credential.refused"
_CAPACITY = 10_000
_BATCH = 500
_FLUSH_SECONDS = 0.5
_PAUSE = timedelta(seconds=10)
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
        self._written_at: dict[Kind, datetime] = {}

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

    async def flush(self, *, everything: bool = False) -> None:
        """Write what is due, or everything that waits; raises `DatabaseOutage`, and what was not written waits on."""
        now = self._now()
        self._written_at = {kind: at for kind, at in self._written_at.items() if now - at < _PAUSE}
        due = [kind for kind in self._waiting if everything or kind not in self._written_at]
        for at in range(0, len(due), _BATCH):
            batch = {kind: self._waiting.pop(kind) for kind in due[at : at + _BATCH]}
            try:
                await append_all(self._pool, [_entry(waiting) for waiting in batch.values()], pepper=self._pepper)
            except BaseException:
                self._give_back(batch)
                raise
            self._written_at.update(dict.fromkeys(batch, now))

    def _give_back(self, batch: dict[Kind, _Waiting]) -> None:
        for kind, waiting in batch.items():
            more = self._waiting.get(kind)
            waiting.times += more.times if more else 0
            self._waiting[kind] = waiting


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
