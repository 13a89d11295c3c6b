"""Whom does grpcio's server answer over TCP with TLS? Who shows a certificate of the right CA, and nobody else."""

import socket
from collections.abc import AsyncIterator

import grpc
import pytest
import trustme

from sidecar.embedded.ports import free_port
from tests.transport.client import PATIENCE_SECONDS
from tests.transport.servers import BODY_LIMIT, NAME, service
from transport.address import TcpAddress
from transport.grpcio_server import GrpcioServer
from transport.tls import Tls

HOST = "127.0.0.1"
CLIENT = "envoy.test"


@pytest.fixture(scope="module")
def server_ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def client_ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def address(server_ca: trustme.CA, client_ca: trustme.CA) -> AsyncIterator[TcpAddress]:
    """Where an echo runs that believes `client_ca` alone."""
    address, errors = TcpAddress(host=HOST, port=free_port()), list[Exception]()
    own = server_ca.issue_cert(HOST)
    tls = Tls(
        certificate=b"".join(blob.bytes() for blob in own.cert_chain_pems),
        key=own.private_key_pem.bytes(),
        client_ca=client_ca.cert_pem.bytes(),
    )
    server = GrpcioServer([service()], address=address, max_body_bytes=BODY_LIMIT, observe_error=errors.append, tls=tls)
    await server.start()
    yield address
    await server.stop(0)
    assert errors == []


def _channel(address: TcpAddress, server_ca: trustme.CA, shown: trustme.LeafCert | None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=server_ca.cert_pem.bytes(),
        private_key=shown.private_key_pem.bytes() if shown else None,
        certificate_chain=b"".join(blob.bytes() for blob in shown.cert_chain_pems) if shown else None,
    )
    return grpc.aio.secure_channel(str(address), credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def test_a_client_with_a_certificate_is_answered(
    address: TcpAddress, server_ca: trustme.CA, client_ca: trustme.CA
) -> None:
    async with _channel(address, server_ca, client_ca.issue_cert(CLIENT)) as channel:
        assert await channel.unary_unary(f"/{NAME}/Unary")(b"once", timeout=PATIENCE_SECONDS) == b"once"
        stream = channel.stream_stream(f"/{NAME}/Stream")(timeout=PATIENCE_SECONDS)
        for message in (b"", b"x" * 1_000_000):
            await stream.write(message)
            assert await stream.read() == message
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


@pytest.mark.parametrize("who", ["without a certificate", "of a foreign CA", "of the server's own CA"])
async def test_who_has_no_certificate_of_the_clients_ca_is_not_answered(
    address: TcpAddress, server_ca: trustme.CA, *, who: str
) -> None:
    shown = {
        "without a certificate": None,
        "of a foreign CA": trustme.CA().issue_cert(CLIENT),
        "of the server's own CA": server_ca.issue_cert(CLIENT),
    }[who]
    async with _channel(address, server_ca, shown) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{NAME}/Unary")(b"", timeout=PATIENCE_SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_plaintext_is_not_answered(address: TcpAddress) -> None:
    async with grpc.aio.insecure_channel(str(address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(f"/{NAME}/Unary")(b"", timeout=PATIENCE_SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_another_has_is_not_shared() -> None:
    with socket.socket() as other:
        # grpcio would share with whoever allows it, as another grpcio does.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind((HOST, 0))
        other.listen()
        address = TcpAddress(host=HOST, port=other.getsockname()[1])
        server = GrpcioServer([service()], address=address, max_body_bytes=BODY_LIMIT, observe_error=lambda _: None)
        with pytest.raises(RuntimeError, match="bind"):
            await server.start()
        await server.stop(0)
