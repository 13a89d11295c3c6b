"""Whose key is this, as Postgres knows it, and when has that changed?

`PostgresDirectory` keeps the promise of `authz.directory.Directory`. `IdentityListener` hears of changes and tells
whoever holds a copy: `authz.directory.CachedDirectory.announce_change`.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable

import asyncpg
import msgspec

from authz.directory import DirectoryOutage, KeyRecord
from authz.grant import Metering
from store.database import Connection, DatabaseOutage, Pool, connect, outages_named
from store.plans import decode_limits

CHANNEL = "identity_changed"
DEADLINE_SECONDS = 2.0
_FIND_KEY = """
SELECT k.id, k.hash, k.revoked_at, k.expires_at,
       o.id AS organization_id, o.suspended_at IS NOT NULL AS organization_suspended,
       t.id AS tenant_id, t.suspended_at IS NOT NULL AS tenant_suspended,
       p.name AS plan, p.limits, p.metering
FROM api_keys k
JOIN tenants t ON t.id = k.tenant_id
JOIN organizations o ON o.id = t.organization_id
JOIN plans p ON p.name = t.plan
WHERE k.id = $1"""


class PostgresDirectory:
    """Looks keys up in Postgres, one query each. The deadline counts the wait for a free connection too."""

    def __init__(self, pool: Pool, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._pool = pool
        self._deadline = deadline_seconds

    async def find_key(self, key_id: str) -> KeyRecord | None:
        """As `authz.directory.Directory.find_key`."""
        try:
            with outages_named():
                async with asyncio.timeout(self._deadline):
                    row = await self._pool.fetchrow(_FIND_KEY, key_id)
            return None if row is None else _record(row)
        except DatabaseOutage as error:
            raise DirectoryOutage(str(error)) from error
        except msgspec.MsgspecError as error:
            raise DirectoryOutage(f"the limits of the plan of key {key_id} cannot be read: {error}") from error


class IdentityListener:
    """Calls `on_change` whenever identities may have changed, in the loop that runs `run`.

    That is at each notification, and after every connect: what changed while nobody listened is not repeated.
    """

    def __init__(
        self,
        dsn: str,
        on_change: Callable[[], None],
        *,
        retry_seconds: tuple[float, float] = (0.1, 5.0),
        probe_seconds: float = 10.0,
    ) -> None:
        """`retry_seconds` are the first and the longest pause between two attempts to connect.

        A connection that is silent for `probe_seconds` is asked for a sign of life.
        """
        self._dsn = dsn
        self._on_change = on_change
        self._first_pause, self._longest_pause = retry_seconds
        self._pause = self._first_pause
        self._probe_seconds = probe_seconds
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether changes are heard at this moment."""
        return self._connected

    async def run(self) -> None:
        """Listen until cancelled; an outage never ends it."""
        while True:
            with contextlib.suppress(DatabaseOutage):
                await self._listen()
            # Spread out, or all workers would come back to a restarted Postgres at the same moment.
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            self._pause = min(self._pause * 2, self._longest_pause)

    async def _listen(self) -> None:
        """Listen over one connection until it is lost, which raises `DatabaseOutage`."""
        connection = await connect(self._dsn)
        try:
            with outages_named():
                lost = asyncio.Event()
                connection.add_termination_listener(lambda _: lost.set())
                await connection.add_listener(CHANNEL, lambda *_: self._on_change())
                self._connected = True
                self._pause = self._first_pause
                self._on_change()
                await self._watch(connection, lost)
        finally:
            self._connected = False
            # Not close(): it waits for a server that may be gone.
            connection.terminate()

    async def _watch(self, connection: Connection, lost: asyncio.Event) -> None:
        while not lost.is_set():
            try:
                async with asyncio.timeout(self._probe_seconds):
                    await lost.wait()
            except TimeoutError:
                # The other end may have gone without a word (a failover, a firewall that forgot us).
                await connection.execute("SELECT 1", timeout=self._probe_seconds)
        raise DatabaseOutage("the connection that listens for changes was lost")


def _record(row: asyncpg.Record) -> KeyRecord:
    fields = dict(row)
    fields["limits"] = decode_limits(fields["limits"])
    fields["metering"] = Metering(fields["metering"])
    return KeyRecord(**fields)
