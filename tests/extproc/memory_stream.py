"""A gRPC stream without gRPC: Envoy's side puts bytes in and takes bytes out."""

import asyncio
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class MemoryStream:
    """Keeps the promise of `transport.service.Stream`."""

    incoming: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)
    written: deque[bytes] = field(default_factory=deque)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _closed: bool = False

    async def read(self) -> bytes | None:
        return await self.incoming.get()

    def write(self, message: bytes) -> None:
        self.written.append(message)
        self._answered.set()

    def put(self, *messages: object) -> None:
        for message in messages:
            self.incoming.put_nowait(bytes(message))  # type: ignore[call-overload]

    def end(self) -> None:
        self.incoming.put_nowait(None)

    def close(self) -> None:
        """The handler has ended: nothing more will be written."""
        self._closed = True
        self._answered.set()

    async def answer(self) -> bytes:
        """The next message that was written."""
        async with asyncio.timeout(10):
            while not self.written:
                assert not self._closed, "the handler has ended"
                self._answered.clear()
                await self._answered.wait()
        return self.written.popleft()
