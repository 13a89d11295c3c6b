"""When has Postgres changed what is known of a caller, and which row was it?

A copy of what `store.directory` found is kept true with it. Whoever holds one is told of each change.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable

from store.database import Connection, DatabaseOutage, connect, outages_named

CHANNEL = "identity_changed"


class IdentityListener:
    """Calls `on_change` whenever identities may have changed, in the loop that runs `run`.

    At each notification it gets what was said: `table:id:version`, or `*` after a TRUNCATE. After every connect it
    gets None: what changed while nobody listened is not repeated, so anything may have.
    """

    def __init__(
        self,
        dsn: str,
        on_change: Callable[[str | None], None],
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
                await connection.add_listener(CHANNEL, lambda _, __, ___, said: self._on_change(str(said)))
                self._connected = True
                self._pause = self._first_pause
                self._on_change(None)
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
