"""Which server answers Envoy, and at which address? For each process that Envoy calls, as the settings say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from sidecar.listening import Transport
from sidecar.settings import Settings
from sidecar.sockets import recorder_socket, worker_socket
from transport.address import Address, TcpAddress, UnixAddress
from transport.grpcio_server import GrpcioServer
from transport.lean_server import LeanServer
from transport.service import Service

ObserveError = Callable[[Exception], None]


class Server(Protocol):
    """What every implementation of the seam can do."""

    async def start(self) -> None:
        """Bind and serve."""

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let the running ones finish for so long, then end them."""


def worker_address(settings: Settings, index: int) -> Address:
    """Where Envoy reaches a worker."""
    if settings.listen is not None:
        return replace(settings.listen, port=settings.listen.port + index)
    return _worker_socket(settings, index)


def recorder_address(settings: Settings) -> Address:
    """Where Envoy reaches the recorder: at the port behind the last worker's."""
    if settings.listen is not None:
        return replace(settings.listen, port=settings.listen.port + settings.workers)
    return UnixAddress(path=recorder_socket(settings.socket_dir), mode=int(settings.socket_mode, 8))


def probe_address(settings: Settings, index: int) -> Address:
    """Where the supervisor asks a worker for its health, in plaintext.

    Over TLS it would need a certificate of the clients' CA, which may vouch for Envoy alone, and a name that the
    server's own certificate has. So a worker that speaks TLS tells its health, and nothing else, on a Unix socket too.
    """
    return worker_address(settings, index) if settings.listen_key is None else _worker_socket(settings, index)


def worker(
    settings: Settings, index: int, services: Sequence[Service], health: Service, observe_error: ObserveError
) -> Server:
    """The server of a worker, not started."""
    address, probed = worker_address(settings, index), probe_address(settings, index)
    server = _server(settings, [*services, health], address, observe_error)
    return server if address == probed else _Probed(server, _server(settings, [health], probed, observe_error))


def recorder(settings: Settings, services: Sequence[Service], observe_error: ObserveError) -> Server:
    """The server of the recorder, not started."""
    return _server(settings, services, recorder_address(settings), observe_error)


@dataclass(frozen=True, slots=True)
class _Probed:
    """A server, and one beside it that tells its health until it has stopped."""

    server: Server
    beside: Server

    async def start(self) -> None:
        await self.server.start()
        await self.beside.start()

    async def stop(self, grace_seconds: float) -> None:
        await self.server.stop(grace_seconds)
        await self.beside.stop(0)


def _server(settings: Settings, services: Sequence[Service], address: Address, observe_error: ObserveError) -> Server:
    limit = settings.max_body_bytes
    match settings.transport:
        case Transport.LEAN:
            return LeanServer(services, address=address, max_body_bytes=limit, observe_error=observe_error)
        case Transport.GRPCIO:
            tls = settings.tls_files.read() if isinstance(address, TcpAddress) else None
            return GrpcioServer(services, address=address, max_body_bytes=limit, observe_error=observe_error, tls=tls)


def _worker_socket(settings: Settings, index: int) -> UnixAddress:
    return UnixAddress(path=worker_socket(settings.socket_dir, index), mode=int(settings.socket_mode, 8))
