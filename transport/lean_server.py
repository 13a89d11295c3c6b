"""How is gRPC served to our own Envoy at a tenth of grpcio's cost? HTTP/2 in pure Python, on asyncio's sockets.

For the one peer that is known: cleartext on a Unix socket or on loopback, and no other address
(docs/adr/0030-a-lean-grpc-server.md).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from transport import grpc_request
from transport.address import Address, TcpAddress, UnixAddress
from transport.grpc_status import Code, Status
from transport.lean_link import Link, Serving
from transport.limits import Limits
from transport.service import Service
from transport.underway import Underway

LEAST_MESSAGE_OCTETS = 4_194_304
HEADROOM_OCTETS = 1_048_576
_LINGER_SECONDS = 0.25
_CLOSE_SECONDS = 0.5
_BACKLOG = 128
_STOPPED = Status(Code.UNAVAILABLE, "the server stops")


class LeanServer:
    """Serves at `address`; `max_body_bytes` bounds what a message may hold.

    A Unix socket's path must be this process's alone while it serves. Raises ValueError for an address that others
    than this host reach.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        address: Address,
        max_body_bytes: int,
        observe_error: Callable[[Exception], None],
        limits: Limits | None = None,
    ) -> None:
        if isinstance(address, TcpAddress) and not address.loopback:
            raise ValueError(f"the lean server serves this host only, not {address}")
        self._address = address
        self._underway = Underway()
        self._serving = Serving(
            methods=grpc_request.methods(services),
            most_message_octets=max(max_body_bytes, LEAST_MESSAGE_OCTETS) + HEADROOM_OCTETS,
            observe_error=observe_error,
            limits=limits or Limits(),
            underway=self._underway,
            links=set(),
        )
        self._listener: asyncio.Server | None = None
        self._inode = 0
        self._calming: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Bind and serve. A socket that a killed predecessor left behind is replaced."""
        loop = asyncio.get_running_loop()
        bound = _bound(self._address)
        if isinstance(self._address, UnixAddress):
            self._inode = self._address.path.stat().st_ino
            self._listener = await loop.create_unix_server(self._link, sock=bound, backlog=_BACKLOG)
        else:
            self._listener = await loop.create_server(self._link, sock=bound, backlog=_BACKLOG)
        self._calm()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let the running ones finish for so long, then end them and the endless ones."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + grace_seconds
        self._close_listener()
        for link in self._serving.links:
            link.drain()
        await _within(ends_at, self._underway.idle())
        if any(link.has_endless for link in self._serving.links):
            # What the last calls left behind still comes over the endless streams: the access log, in small batches.
            await asyncio.sleep(max(0.0, min(_LINGER_SECONDS, ends_at - loop.time())))
        for link in list(self._serving.links):
            link.end_calls(_STOPPED)
        closing_ends_at = loop.time() + _CLOSE_SECONDS
        await _within(closing_ends_at, self._underway.idle())
        links = list(self._serving.links)
        for link in links:
            link.close()
        await _within(closing_ends_at, _all_closed(links))
        for link in links:
            link.abort()
        if self._calming is not None:
            self._calming.cancel()

    def _link(self) -> Link:
        return Link(self._serving)

    def _calm(self) -> None:
        for link in self._serving.links:
            link.calm()
        self._calming = asyncio.get_running_loop().call_later(1.0, self._calm)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if isinstance(self._address, UnixAddress):
            with contextlib.suppress(FileNotFoundError):
                # Not another's, who has bound the path since.
                if self._address.path.stat().st_ino == self._inode:
                    self._address.path.unlink()


def _bound(address: Address) -> socket.socket:
    if isinstance(address, TcpAddress):
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address.host, address.port))
        return bound
    address.path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before it is there for others: Linux takes over the mode of the descriptor. After it for the bits that umask cut.
    os.fchmod(bound.fileno(), address.mode)
    bound.bind(str(address.path))
    Path(address.path).chmod(address.mode)
    return bound


async def _all_closed(links: Sequence[Link]) -> None:
    for link in links:
        await asyncio.shield(link.closed)


async def _within(ends_at: float, work: object) -> None:
    """Wait for it, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(ends_at):
            await work  # type: ignore[misc]
