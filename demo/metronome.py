"""How do a thousand streams pause cheaply? They share one timer per millisecond.

A timer of its own for each event costs more than writing the event. uvloop's clock has whole milliseconds
anyway, so waiting for the next beat loses nothing.
"""

import asyncio

BEATS_PER_SECOND = 1000


class Metronome:
    """Wakes everyone whose pause ends in the same millisecond at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}

    async def rest(self, seconds: float) -> None:
        """Pause, never for less than asked; a pause of zero lets the loop flush what was written."""
        if not seconds:
            await asyncio.sleep(0)
            return
        beat = int((self._loop.time() + seconds) * BEATS_PER_SECOND) + 1
        sleeper = self._loop.create_future()
        if (sleepers := self._waiting.get(beat)) is None:
            self._waiting[beat] = [sleeper]
            self._loop.call_at(beat / BEATS_PER_SECOND, self._ring, beat)
        else:
            sleepers.append(sleeper)
        await sleeper

    def _ring(self, beat: int) -> None:
        for sleeper in self._waiting.pop(beat):
            if not sleeper.done():
                sleeper.set_result(None)
