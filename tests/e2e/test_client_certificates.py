"""Does the listener end the handshake of a certificate that does not verify, and do without one otherwise?"""

import socket
import ssl

import httpx
import pytest
from cryptography import x509

from tests.support.client_certificates import ClientCertificate, Issuer, dns, uri
from tests.support.gateway import Gateway

WORKLOAD = "spiffe://demo.local/workload/demo"
VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
REQUEST = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"


def _context(gateway: Gateway, version: ssl.TLSVersion, certificate: ClientCertificate) -> ssl.SSLContext:
    tls = certificate.on(gateway.tls)
    tls.minimum_version = tls.maximum_version = version
    return tls


def _asked(gateway: Gateway, tls: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A connection that has had an answer: with TLS 1.3 a client hears only then that its certificate was refused."""
    plain = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    connection = tls.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
    connection.sendall(REQUEST)
    assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    return connection


@VERSIONS
@pytest.mark.parametrize("kind", ["foreign", "expired"])
def test_a_certificate_that_does_not_verify_ends_the_handshake(
    gateway: Gateway, version: ssl.TLSVersion, kind: str
) -> None:
    foreign = Issuer(gateway.folder / "foreign")
    refused = foreign.issue(uri(WORKLOAD)) if kind == "foreign" else gateway.issuer.issue_expired(uri(WORKLOAD))
    tls = _context(gateway, version, refused)
    with httpx.Client(base_url=gateway.url, verify=tls) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")


@VERSIONS
@pytest.mark.parametrize("name", [uri(WORKLOAD), dns("a.example"), None], ids=["uri", "dns", "nameless"])
def test_one_that_verifies_passes_whatever_it_names(
    gateway: Gateway, version: ssl.TLSVersion, name: x509.GeneralName | None
) -> None:
    certificate = gateway.issuer.issue(*([name] if name else []))
    with _asked(gateway, _context(gateway, version, certificate)) as connection:
        assert connection.version() == version.name.replace("_", ".")


@VERSIONS
def test_no_session_is_resumed_for_its_certificate_would_not_be_verified_again(
    gateway: Gateway, version: ssl.TLSVersion
) -> None:
    tls = _context(gateway, version, gateway.issuer.issue(uri(WORKLOAD)))
    with _asked(gateway, tls) as first, _asked(gateway, tls, first.session) as second:
        assert not second.session_reused


async def test_a_certificate_alone_opens_nothing(gateway: Gateway) -> None:
    certificate = gateway.issuer.issue(uri("spiffe://demo.local/workload/unheard-of"))
    async with gateway.client(certificate=certificate) as client:
        answer = await client.post("/v1/infer", json={"model": "m", "input": "hello"})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "unknown_certificate"


@pytest.mark.parametrize("name", ["x-client-cert", "x-forwarded-client-cert", "X_Forwarded_Client_Cert"])
async def test_a_header_is_no_certificate(gateway: Gateway, name: str) -> None:
    tenant = await gateway.tenant()
    headers = {name: f'Hash=00;Subject="";URI={WORKLOAD}'}
    async with gateway.client() as client:
        nobody = await client.post("/v1/infer", json={"model": "m", "input": "hello"}, headers=headers)
    async with gateway.client(tenant) as client:
        answer = await client.post("/v1/infer", json={"model": "m", "input": "hello"}, headers=headers)
    assert nobody.json()["error"]["code"] == "missing_credentials"
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert WORKLOAD not in str(seen)
