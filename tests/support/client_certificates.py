"""Who issues client certificates in the tests? A CA that Envoy trusts, and a foreign one."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from cryptography import x509

from sidecar.embedded.client_ca import ClientCa, make_client_ca

DAY = timedelta(days=1)


def uri(name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(name)


def dns(name: str) -> x509.DNSName:
    return x509.DNSName(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate and its key in one file, as a client loads it."""

    path: Path
    pem: str

    def on(self, tls: ssl.SSLContext) -> ssl.SSLContext:
        """The same context, which shows this certificate."""
        tls.load_cert_chain(self.path)
        return tls


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA, and the folder where it puts what it issues."""

    folder: Path
    ca: ClientCa = field(default_factory=lambda: make_client_ca(now=datetime.now(UTC), lifetime=DAY))

    @property
    def path(self) -> Path:
        """The CA's own certificate, for Envoy; written when it is asked for."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / "client-ca.pem"
        path.write_bytes(self.ca.pem)
        return path

    def issue(self, *names: x509.GeneralName, lifetime: timedelta = DAY) -> ClientCertificate:
        """A certificate with these names, valid from an hour ago."""
        return self._issued(names, now=datetime.now(UTC), lifetime=lifetime)

    def issue_expired(self, *names: x509.GeneralName) -> ClientCertificate:
        """A certificate whose last day was yesterday."""
        return self._issued(names, now=datetime.now(UTC) - 2 * DAY, lifetime=DAY)

    def _issued(self, names: tuple[x509.GeneralName, ...], *, now: datetime, lifetime: timedelta) -> ClientCertificate:
        pair = self.ca.issue(names, now=now, lifetime=lifetime)
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"client-{uuid4().hex}.pem"
        path.touch(mode=0o600)
        path.write_bytes(pair.certificate + pair.key)
        return ClientCertificate(path=path, pem=pair.certificate.decode())
