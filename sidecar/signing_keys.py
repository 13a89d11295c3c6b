"""Which keys does this process sign with, or know the public halves of? Loaded from Postgres and kept fresh.

A key takes over by its times (authz/key_ring.py), so a ring that is some minutes old is right as well.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from authz.key_ring import KeyRing
from sidecar.logs import Logger
from sidecar.refresher import Refresher
from store import signing_keys
from store.database import Pool

TABLE = "signing_keys"


def refresher(pool: Pool, *, pepper: bytes, use: Callable[[KeyRing], None], logger: Logger) -> Refresher:
    """Hands the ring to `use` whenever it was read. Until it has been read once, there is none."""

    async def read() -> None:
        now = datetime.now(UTC)
        await signing_keys.ensure(pool, pepper, now)
        use(await signing_keys.load(pool, pepper, now))

    return Refresher(TABLE, read, logger=logger)
