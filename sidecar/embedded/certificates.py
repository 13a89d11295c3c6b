"""Whose certificate does the local listener show, and whom does it believe? Made at the first start and then reused.

One CA vouches for the server, another one for its clients; of those, one is made for the demo. The CAs' keys are never
written: nobody can sign with them later. A renewal therefore makes new CAs as well.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509

from sidecar.embedded.client_ca import make_client_ca

HOSTS = ("localhost", "127.0.0.1", "::1")
LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=1)
DEMO_WORKLOAD = "spiffe://demo.local/workload/demo"


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of the server, of the demo's client and of their CAs, in one folder."""

    folder: Path

    @property
    def ca(self) -> Path:
        """What a client must trust."""
        return self.folder / "ca.pem"

    @property
    def server(self) -> Path:
        """The server's certificate chain."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's private key, mode 0600."""
        return self.folder / "server.key"

    @property
    def client_ca(self) -> Path:
        """What the server must trust of clients."""
        return self.folder / "client-ca.pem"

    @property
    def client(self) -> Path:
        """The certificate of the demo's client, a SPIFFE id: `DEMO_WORKLOAD`."""
        return self.folder / "client.pem"

    @property
    def client_key(self) -> Path:
        """The private key of the demo's client, mode 0600."""
        return self.folder / "client.key"


def ensure_certificates(folder: Path, *, now: datetime | None = None) -> Certificates:
    """Return the folder's certificates, made anew when they are missing, broken or about to expire."""
    at = now or datetime.now(UTC)
    found = Certificates(folder)
    if not _usable(found, until=at + RENEW_BEFORE):
        _make(folder, now=at)
    return found


def _usable(found: Certificates, *, until: datetime) -> bool:
    if not (found.key.exists() and found.client_key.exists()):
        return False
    certificates = (found.ca, found.server, found.client_ca, found.client)
    try:
        held = [x509.load_pem_x509_certificate(path.read_bytes()) for path in certificates]
    except (FileNotFoundError, ValueError):
        return False
    return all(certificate.not_valid_after_utc > until for certificate in held)


def _make(folder: Path, *, now: datetime) -> None:
    # All files appear at once, by a rename: a run killed here leaves the old folder, or none.
    fresh = Certificates(folder.with_name(folder.name + ".new"))
    shutil.rmtree(fresh.folder, ignore_errors=True)
    fresh.folder.mkdir(parents=True, mode=0o700)
    _make_server(fresh, now=now)
    _make_client(fresh, now=now)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.folder.rename(folder)


def _make_server(fresh: Certificates, *, now: datetime) -> None:
    ca = trustme.CA(organization_name="inference-gateway up")
    issued = ca.issue_cert(*HOSTS, not_before=now - timedelta(hours=1), not_after=now + LIFETIME)
    ca.cert_pem.write_to_path(fresh.ca)
    fresh.server.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    _write_secret(fresh.key, issued.private_key_pem.bytes())


def _make_client(fresh: Certificates, *, now: datetime) -> None:
    ca = make_client_ca(now=now, lifetime=LIFETIME)
    issued = ca.issue([x509.UniformResourceIdentifier(DEMO_WORKLOAD)], now=now, lifetime=LIFETIME)
    fresh.client_ca.write_bytes(ca.pem)
    fresh.client.write_bytes(issued.certificate)
    _write_secret(fresh.client_key, issued.key)


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
