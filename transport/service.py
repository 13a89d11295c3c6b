"""How do bytes reach a service? The seam between what a service does and the gRPC server that carries it.

Services are bytes in, bytes out. A server implements this seam for one way of carrying gRPC; nothing above may
depend on which server runs.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Stream(Protocol):
    """One bidirectional call, as its handler sees it."""

    async def read(self) -> bytes | None:
        """Wait for the peer's next message; None when the peer has ended its side or is gone."""

    def write(self, message: bytes) -> None:
        """Send a message. Needs no lock: messages leave in the order of the calls, from whichever task."""


UnaryHandler = Callable[[bytes], Awaitable[bytes]]
StreamHandler = Callable[[Stream], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A gRPC service: its full name and the methods it answers.

    The streams of an `endless` service end only when the peer does; a server that drains does not wait for them.
    """

    name: str
    unary: Mapping[str, UnaryHandler]
    streams: Mapping[str, StreamHandler]
    endless: bool = False
