"""Are the certificates made once, trusted, and renewed in time?"""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sidecar.embedded.certificates import LIFETIME, Certificates, ensure_certificates

NOW = datetime.now(UTC)


def test_they_are_made_once_and_reused(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    before = {path: path.read_bytes() for path in (made.ca, made.server, made.key)}
    ensure_certificates(tmp_path / "tls", now=NOW + LIFETIME - timedelta(days=2))
    assert {path: path.read_bytes() for path in before} == before
    assert made.key.stat().st_mode & 0o777 == 0o600


def test_they_are_renewed_within_a_day_of_their_end(tmp_path: Path) -> None:
    made = ensure_certificates(tmp_path / "tls", now=NOW)
    before = made.server.read_bytes()
    ensure_certificates(tmp_path / "tls", now=NOW + LIFETIME - timedelta(hours=23))
    assert made.server.read_bytes() != before


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
