"""Which keys does this process sign with, or know the public halves of? Loaded from Postgres and kept fresh.

A key takes over by its times (authz/key_ring.py), so a ring that is some minutes old is right as well.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from authz.key_ring import KeyRing
from sidecar.logs import Logger
from store import signing_keys
from store.database import DatabaseOutage, Pool
from store.field_error import FieldError

TABLE = "signing_keys"
_REFRESH_SECONDS = 60.0
_RETRY_SECONDS = 0.5


class SigningKeys:
    """Hands the ring to `use` whenever it was read. Until it has been read once, there is none."""

    def __init__(self, pool: Pool, *, pepper: bytes, use: Callable[[KeyRing], None], logger: Logger) -> None:
        self._pool = pool
        self._pepper = pepper
        self._use = use
        self._logger = logger
        self._changed = asyncio.Event()
        self._failure = ""

    def announce(self, change: str | None) -> None:
        """Take in a change of any table; one of the keys, or of who knows what, has them read anew."""
        if change is None or not change[:1].isalpha() or change.startswith(f"{TABLE}:"):
            self._changed.set()

    async def run(self) -> None:
        """Read until cancelled; an outage of Postgres is waited out."""
        while True:
            self._changed.clear()
            seconds = _REFRESH_SECONDS if await self._read() else _RETRY_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _read(self) -> bool:
        now = datetime.now(UTC)
        try:
            await signing_keys.ensure(self._pool, self._pepper, now)
            self._use(await signing_keys.load(self._pool, self._pepper, now))
        except (DatabaseOutage, FieldError) as error:
            self._note(str(error))
            return False
        self._note("")
        return True

    def _note(self, failure: str) -> None:
        """Say each failure once."""
        if failure and failure != self._failure:
            self._logger.warning("signing keys cannot be read", action="signing_keys_unread", reason=failure)
        self._failure = failure
