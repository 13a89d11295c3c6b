"""Are the certificates made once, trusted, and renewed in time?"""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from sidecar.embedded.certificates import DEMO_WORKLOAD, LIFETIME, Certificates, ensure_certificates
from tests.support.client_certificates import Issuer, dns, uri

NOW = datetime.now(UTC)


def test_they_are_made_once_and_reused(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    files = (made.ca, made.server, made.key, made.client_ca, made.client, made.client_key)
    before = {path: path.read_bytes() for path in files}
    ensure_certificates(tmp_path / "tls", now=NOW + LIFETIME - timedelta(days=2))
    assert {path: path.read_bytes() for path in before} == before
    for secret in (made.key, made.client_key):
        assert secret.stat().st_mode & 0o777 == 0o600


def test_they_are_renewed_within_a_day_of_their_end(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    before = made.server.read_bytes(), made.client.read_bytes()
    ensure_certificates(tmp_path / "tls", now=NOW + LIFETIME - timedelta(hours=23))
    assert made.server.read_bytes() != before[0]
    assert made.client.read_bytes() != before[1]


@pytest.mark.parametrize("missing", ["client-ca.pem", "client.pem", "client.key"])
def test_a_folder_of_a_version_without_client_certificates_is_made_anew(tmp_path: Path, missing: str) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    (made.folder / missing).unlink()
    assert (ensure_certificates(tmp_path / "tls", now=NOW).folder / missing).exists()


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    half = Certificates(tmp_path / "tls.new")
    half.folder.mkdir()
    half.ca.write_text("half")
    broken = Certificates(tmp_path / "tls")
    broken.folder.mkdir()
    broken.ca.write_text("-----BEGIN")
    broken.key.touch()
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    ssl.create_default_context(cafile=made.ca)
    assert not half.folder.exists()


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, *, host: str) -> None:
    """Shake hands in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)


def test_the_ca_vouches_for_every_local_name(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server, made.key)
    client = ssl.create_default_context(cafile=made.ca)
    for host in ("localhost", "127.0.0.1", "::1"):
        handshake(client, server, host=host)


def mutual(made: Certificates, client: ssl.SSLContext) -> None:
    """Shake hands with a server that demands a certificate of a client."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server, made.key)
    server.load_verify_locations(made.client_ca)
    server.verify_mode = ssl.CERT_REQUIRED
    handshake(client, server, host="localhost")


def test_the_demos_client_is_a_workload_that_its_ca_vouches_for(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    client = ssl.create_default_context(cafile=made.ca)
    client.load_cert_chain(made.client, made.client_key)
    mutual(made, client)
    certificate = x509.load_pem_x509_certificate(made.client.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [uri(DEMO_WORKLOAD)]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.OID_CLIENT_AUTH]


def test_no_key_of_a_ca_is_written(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    assert {path.name for path in made.folder.iterdir() if b"PRIVATE KEY" in path.read_bytes()} == {
        "server.key",
        "client.key",
    }


def test_the_servers_certificate_is_no_clients(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    client = ssl.create_default_context(cafile=made.ca)
    client.load_cert_chain(made.server, made.key)
    with pytest.raises(ssl.SSLError):
        mutual(made, client)


def test_a_ca_of_clients_writes_names_in_their_order_and_shows_no_key(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path / "clients")
    names = [dns("a.example"), uri("spiffe://a.example/b"), uri("spiffe://a.example/c")]
    certificate = x509.load_pem_x509_certificate(issuer.issue(*names).pem.encode())
    assert list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == names
    nameless = x509.load_pem_x509_certificate(issuer.issue().pem.encode())
    assert not [one for one in nameless.extensions if isinstance(one.value, x509.SubjectAlternativeName)]
    assert "key=" not in repr(issuer.ca)
    assert issuer.issue_expired().pem
