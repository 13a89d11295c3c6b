"""When was each API key last used? Uses are collected in a worker and written in batches.

The hot path only puts a time into a dictionary. A worker that dies takes the uses since its last flush with it: the
column says when a key was used at least.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from store.database import Pool, outages_named

# In one order, so that two workers that write the same keys at once cannot wait for each other.
_TOUCH = """
INSERT INTO key_uses (key_id, last_used_at)
SELECT k.id, used.at
FROM unnest($1::text[], $2::timestamptz[]) AS used (key_id, at) JOIN api_keys k ON k.id = used.key_id
ORDER BY k.id
ON CONFLICT (key_id) DO UPDATE SET last_used_at = excluded.last_used_at
WHERE key_uses.last_used_at < excluded.last_used_at"""


async def touch(pool: Pool, uses: Mapping[str, datetime]) -> None:
    """Write when keys were used, by their public ids; an earlier time than the known one and unknown ids do nothing.

    Raises `DatabaseOutage`.
    """
    if not uses:
        return
    with outages_named():
        await pool.execute(_TOUCH, list(uses.keys()), list(uses.values()))


class KeyUses:
    """The uses of keys since the last flush, of at most `capacity` keys: beyond that new ones are let go."""

    def __init__(self, *, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._uses: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def note(self, key_id: str, at: float) -> None:
        """Remember that the key was used; `at` is seconds since the epoch, and not before what was told last."""
        if key_id in self._uses or len(self._uses) < self._capacity:
            self._uses[key_id] = at

    async def flush(self, pool: Pool) -> None:
        """Write what was collected; raises `DatabaseOutage`, and the uses then wait for the next flush."""
        taken, self._uses = self._uses, {}
        try:
            await touch(pool, {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in taken.items()})
        except BaseException:  # cancelled, too
            for key_id, at in taken.items():
                if key_id not in self._uses:
                    self.note(key_id, at)
            raise
