"""Is a server idle? It counts the calls that an end must wait for."""

import asyncio


class Underway:
    """The calls that have begun and not ended."""

    def __init__(self) -> None:
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Count a call."""
        self._count += 1
        self._idle.clear()

    def end(self) -> None:
        """Count one less."""
        self._count -= 1
        if self._count == 0:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until there is none."""
        await self._idle.wait()
