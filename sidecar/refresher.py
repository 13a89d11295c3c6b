"""How does a process keep a copy of something in Postgres? Read at the start, at an announced change, and at times."""

import asyncio
from collections.abc import Awaitable, Callable

from sidecar.logs import Logger
from store.database import DatabaseOutage
from store.field_error import FieldError

_REFRESH_SECONDS = 60.0
_RETRY_SECONDS = 0.5


class Refresher:
    """Has `read` called whenever what stands in `table` may have changed; an outage of Postgres is waited out."""

    def __init__(self, table: str, read: Callable[[], Awaitable[None]], *, logger: Logger) -> None:
        self._table = table
        self._read = read
        self._logger = logger
        self._changed = asyncio.Event()
        self._failure = ""

    def announce(self, change: str | None) -> None:
        """Take in a change of any table (`table:id:version`); one of ours, or of who knows what, has it read anew."""
        if change is None or not change[:1].isalpha() or change.startswith(f"{self._table}:"):
            self._changed.set()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            self._changed.clear()
            seconds = _REFRESH_SECONDS if await self._succeeds() else _RETRY_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _succeeds(self) -> bool:
        try:
            await self._read()
        except (DatabaseOutage, FieldError) as error:
            self._note(str(error))
            return False
        self._note("")
        return True

    def _note(self, failure: str) -> None:
        """Say each failure once."""
        if failure and failure != self._failure:
            self._logger.warning("cannot be read", action=f"{self._table}_unread", reason=failure)
        self._failure = failure
