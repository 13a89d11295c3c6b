"""Every way in which an issuer's server can disappoint, over real connections."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from authz.json_web_key import MAX_DOCUMENT_BYTES
from authz.key_set import FetchFailed
from sidecar.jwks_client import JwksClient
from tests.support.oidc import running_issuer

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]
BODY = b'{"keys":[]}'


@contextlib.asynccontextmanager
async def _server(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Reads one request a connection, answers it, and closes; its address."""
    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        finally:
            writer.close()
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/jwks"
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


@contextlib.asynccontextmanager
async def _client(ca: Path | None = None, deadline_seconds: float = 20) -> AsyncIterator[JwksClient]:
    async with contextlib.aclosing(JwksClient(ca=ca, deadline_seconds=deadline_seconds)) as client:
        yield client


def _saying(head: bytes, body: bytes = b"") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + head + b"\r\n\r\n" + body)
        await writer.drain()

    return answer


GOOD = _saying(b"200 OK\r\ncontent-length: 11", BODY)


async def _silent(_: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def _dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" " * 65_536)
        await writer.drain()


async def test_a_document_is_fetched() -> None:
    async with _server(GOOD) as url, _client() as client:
        assert await client(url) == BODY


async def test_a_real_issuers_document_is_fetched_again_and_again() -> None:
    with running_issuer() as oidc:
        async with _client() as client:
            for _ in range(3):
                assert oidc.key().kid.encode() in await client(oidc.jwks_url)
        assert oidc.fetches == 3


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (_saying(b"404 Not Found\r\ncontent-length: 11", BODY), "status is 404"),
        (_saying(b"503 Service Unavailable\r\ncontent-length: 0"), "status is 503"),
        (_saying(b"204 No Content"), "status is 204"),
        (_saying(b"302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0"), "status is 302"),
        (_saying(b"200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 11", BODY), "compressed"),
        (_saying(b"200 OK\r\ncontent-length: 12", BODY), "RemoteProtocolError"),
        (_saying(b"nonsense"), "RemoteProtocolError"),
        (_endless, f"larger than {MAX_DOCUMENT_BYTES}"),
    ],
)
async def test_an_answer_that_is_no_document_is_a_failed_fetch(answer: Answer, says: str) -> None:
    async with _server(answer) as url, _client() as client:
        with pytest.raises(FetchFailed, match=says):
            await client(url)


@pytest.mark.parametrize("answer", [_silent, _dripping])
async def test_an_answer_that_does_not_end_in_time_is_a_failed_fetch(answer: Answer) -> None:
    async with _server(answer) as url, _client(deadline_seconds=0.1) as client:
        with pytest.raises(FetchFailed):
            await client(url)


async def test_an_address_where_nobody_listens_is_a_failed_fetch() -> None:
    async with _server(GOOD) as url:
        pass
    async with _client() as client:
        with pytest.raises(FetchFailed, match="ConnectError"):
            await client(url)


async def test_what_is_no_url_is_a_failed_fetch() -> None:
    async with _client() as client:
        for url in ("", "x", "ftp://127.0.0.1/", "http://[", "http://127.0.0.1:x/"):
            with pytest.raises(FetchFailed):
                await client(url)


async def test_a_closed_client_fails() -> None:
    async with _client() as client:
        pass
    with pytest.raises(FetchFailed):
        await client("http://127.0.0.1:1/")


async def test_a_server_is_believed_by_its_certificate_only(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    ca, foreign = tmp_path / "ca.pem", tmp_path / "foreign.pem"
    authority.cert_pem.write_to_path(ca)
    stranger.cert_pem.write_to_path(foreign)
    right = _tls(authority.issue_cert("127.0.0.1"))
    async with _server(GOOD, right) as url, _client(ca) as client:
        assert await client(url) == BODY
    async with _server(GOOD, right) as url:
        for other in (None, foreign):
            async with _client(other) as client:
                with pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
                    await client(url)
    async with _server(GOOD, _tls(authority.issue_cert("id.example"))) as url, _client(ca) as client:
        with pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await client(url)


def _tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with _server(GOOD) as url, _client() as client:
        assert await client(url) == BODY
