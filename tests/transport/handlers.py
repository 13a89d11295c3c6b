"""What becomes of a handler whose client leaves? Handlers that wait in every way there is, and tell how they ended."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.transport.client import Call, Client
from tests.transport.servers import MEGABYTE
from transport.service import Service, Stream

NAME = "waiting.Service"


@dataclass(slots=True)
class Fate:
    """How one call of a handler went."""

    begun: bool = False
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def of(self, work: Awaitable[None]) -> None:
        """Do the work, and tell whether it is cancelled."""
        self.begun = True
        try:
            await work
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def _awaiting() -> None:
    await asyncio.Event().wait()


async def _reading(stream: Stream) -> None:
    # A client that is gone may be read as one that is done: cancellation comes at the next wait.
    while await stream.read() is not None:
        pass
    await _awaiting()


async def _busy(stream: Stream) -> None:
    await stream.read()
    await _awaiting()


async def _flooding(stream: Stream) -> None:
    await stream.read()
    for _ in range(64):
        stream.write(b"x" * MEGABYTE)
    await _reading(stream)


async def _stream(client: Client, method: str, deadline: float | None) -> Call:
    call = client.stream(f"{NAME}/{method}", timeout=deadline)
    await call.send(b"x")
    return call


async def _unary(client: Client, deadline: float | None = None) -> Call:
    return client.start(b"x", f"{NAME}/Unary", timeout=deadline)


async def _is_read(client: Client, deadline: float | None = None) -> Call:
    return await _stream(client, "Reading", deadline)


async def _is_not_heard(client: Client, deadline: float | None = None) -> Call:
    return await _stream(client, "Busy", deadline)


async def _has_ended_its_side(client: Client, deadline: float | None = None) -> Call:
    call = await _stream(client, "Reading", deadline)
    await call.end()
    return call


async def _does_not_read(client: Client, deadline: float | None = None) -> Call:
    return await _stream(client, "Flooding", deadline)


class Begins(Protocol):
    """How a client begins a call that does not end; with a deadline after so many seconds, if any."""

    async def __call__(self, client: Client, deadline: float | None = None) -> Call: ...


WAITS: dict[str, Begins] = {
    "unary": _unary,
    "stream-that-reads": _is_read,
    "stream-that-awaits-something-else": _is_not_heard,
    "stream-whose-client-is-done": _has_ended_its_side,
    "stream-whose-client-does-not-read": _does_not_read,
}


@dataclass(slots=True)
class Fates:
    """Handlers that never end by themselves, and what became of their calls in the order of their begin."""

    fates: list[Fate] = field(default_factory=list)

    def service(self) -> Service:
        """The service of these handlers."""

        async def unary(_: bytes) -> bytes:
            await self._fate().of(_awaiting())
            return b""

        def told(handler: Callable[[Stream], Awaitable[None]]) -> Callable[[Stream], Awaitable[None]]:
            return lambda stream: self._fate().of(handler(stream))

        streams = {"Reading": told(_reading), "Busy": told(_busy), "Flooding": told(_flooding)}
        return Service(name=NAME, unary={"Unary": unary}, streams=streams)

    def _fate(self) -> Fate:
        self.fates.append(Fate())
        return self.fates[-1]
