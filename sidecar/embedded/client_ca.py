"""Who vouches for client certificates when there is no CA of one's own? One made here, whose key stays in memory.

trustme cannot write the URI names that a SPIFFE id is (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks differ: what is made now is valid an hour ago.
_CLOCKS_DIFFER = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientCa:
    """A CA that issues client certificates until it is forgotten."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        """What Envoy must trust."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, names: Sequence[x509.GeneralName], *, now: datetime, lifetime: timedelta) -> KeyPair:
        """A client certificate with these subject alternative names, in this order; none is allowed as well."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _valid(_named("workload"), now=now, lifetime=lifetime)
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return KeyPair(builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM), private)


def make_client_ca(*, now: datetime, lifetime: timedelta) -> ClientCa:
    """A new CA of clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _named("inference-gateway clients")
    builder = (
        _valid(name, now=now, lifetime=lifetime)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return ClientCa(builder.sign(key, hashes.SHA256()), key)


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _valid(subject: x509.Name, *, now: datetime, lifetime: timedelta) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + lifetime)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
