"""How is a connection kept from going where it must not? The address that is connected to is the one that was checked.

A name is resolved here, once for each connection; all its addresses must be public. So a name that leads to another
address a moment later (DNS rebinding) gains nothing. TLS and the Host header go by the name, as ever.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import httpcore

from store.public_address import is_public

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host; raises `OSError` when there are none."""


class Forbidden(Exception):
    """The host leads to an address that is not public. Says nothing of which."""


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, and, when `allow_private`, to any."""

    def __init__(
        self, resolve: Resolve, *, allow_private: bool = False, network: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        """`network` is what connects to the addresses in the end."""
        self._resolve = resolve
        self._allow_private = allow_private
        self._network = network or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first of the host's addresses that takes it; raises `Forbidden`, or httpcore's errors."""
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            found = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError("the name cannot be resolved") from error
        if not self._allow_private and not all(map(is_public, found)):
            raise Forbidden
        return found


class Resolver:
    """The system's resolver, in threads of its own: a name server that hangs holds up nobody else's names."""

    def __init__(self, *, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int, /) -> list[str]:
        """The host's addresses, in the system's order; raises `OSError`."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _look_up, host, port)
        except UnicodeError as error:  # a label that is empty, or too long
            raise OSError("not a name") from error
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Let go of the threads; those that hang end with their question."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
