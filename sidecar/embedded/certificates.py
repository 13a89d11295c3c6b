"""Whose certificate does the local listener show? One of our own CA, made at the first start and then reused.

The CA's key is never written: nobody can sign with it later. A renewal therefore makes a new CA as well.
"""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509

HOSTS = ("localhost", "127.0.0.1", "::1")
LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of the CA and of the server, in one folder."""

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


def ensure_certificates(folder: Path, *, now: datetime | None = None) -> Certificates:
    """Return the folder's certificates, made anew when they are missing, broken or about to expire."""
    at = now or datetime.now(UTC)
    found = Certificates(folder)
    if not _usable(found, until=at + RENEW_BEFORE):
        _make(folder, now=at)
    return found


def _usable(found: Certificates, *, until: datetime) -> bool:
    if not found.key.exists():
        return False
    try:
        held = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (found.ca, found.server)]
    except (FileNotFoundError, ValueError):
        return False
    return all(certificate.not_valid_after_utc > until for certificate in held)


def _make(folder: Path, *, now: datetime) -> None:
    # All files appear at once, by a rename: a run killed here leaves the old folder, or none.
    fresh = Certificates(folder.with_name(folder.name + ".new"))
    shutil.rmtree(fresh.folder, ignore_errors=True)
    fresh.folder.mkdir(parents=True, mode=0o700)
    ca = trustme.CA(organization_name="inference-gateway up")
    issued = ca.issue_cert(*HOSTS, not_before=now - timedelta(hours=1), not_after=now + LIFETIME)
    ca.cert_pem.write_to_path(fresh.ca)
    fresh.server.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    fresh.key.touch(mode=0o600)
    fresh.key.write_bytes(issued.private_key_pem.bytes())
    shutil.rmtree(folder, ignore_errors=True)
    fresh.folder.rename(folder)
