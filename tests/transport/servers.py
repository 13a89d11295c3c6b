"""Which servers implement the seam, and how does a test run one? Each test of the contract runs on each of them."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from sidecar.embedded.ports import free_port
from tests.transport.client import Client
from transport.address import Address, TcpAddress, UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.lean_server import LeanServer
from transport.service import Service, Stream, StreamHandler, UnaryHandler

NAME = "test.Service"
MEGABYTE = 1024 * 1024
BODY_LIMIT = 8 * MEGABYTE


class Server(Protocol):
    """What every implementation can do."""

    async def start(self) -> None: ...

    async def stop(self, grace_seconds: float) -> None: ...


class MakesServer(Protocol):
    """How every implementation is made."""

    def __call__(
        self,
        services: Sequence[Service],
        *,
        address: Address,
        max_body_bytes: int,
        observe_error: Callable[[Exception], None],
    ) -> Server: ...


SERVERS: dict[str, MakesServer] = {"grpcio": GrpcioServer, "lean": LeanServer}


async def echo(request: bytes) -> bytes:
    return request


async def echo_all(stream: Stream) -> None:
    while (message := await stream.read()) is not None:
        stream.write(message)


def service(*, unary: UnaryHandler = echo, stream: StreamHandler = echo_all) -> Service:
    """A service of the name that clients call unless told otherwise."""
    return Service(name=NAME, unary={"Unary": unary}, streams={"Stream": stream})


@dataclass(slots=True)
class Served:
    """A running server, and a client of it."""

    server: Server
    address: Address
    client: Client
    errors: list[Exception] = field(default_factory=list)

    def another_client(self, *options: tuple[str, Any], target: str | None = None) -> Client:
        """A client with a connection of its own. Use it as a context."""
        return Client(target or str(self.address), options)


@dataclass(frozen=True, slots=True)
class Serving:
    """One implementation, and the folder that its socket is in."""

    make: MakesServer
    path: Path

    @contextlib.asynccontextmanager
    async def __call__(
        self, *services: Service, address: Address | None = None, max_body_bytes: int = BODY_LIMIT
    ) -> AsyncIterator[Served]:
        """Serve until the end of the block: an echo on a Unix socket, unless told otherwise."""
        address = address or UnixAddress(path=self.path)
        errors: list[Exception] = []
        server = self.make(
            services or [service()], address=address, max_body_bytes=max_body_bytes, observe_error=errors.append
        )
        await server.start()
        try:
            async with Client(str(address)) as client:
                yield Served(server, address, client, errors)
        finally:
            await server.stop(0)

    def loopback(self) -> TcpAddress:
        """An address of TCP that is free."""
        return TcpAddress(host="127.0.0.1", port=free_port())


@pytest.fixture(params=sorted(SERVERS))
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Serving:
    """Each implementation in turn."""
    path = tmp_path / "s.sock"
    assert len(str(path)) < 107
    return Serving(SERVERS[request.param], path)
