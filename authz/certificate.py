"""Whom does a client certificate name? Envoy has verified it; here only its names are read.

SPIFFE X.509-SVID (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md, section 2): the id is the one
URI among the subject alternative names; a certificate with several URIs is no SVID.
"""

from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509

_SPIFFE = "spiffe://"
_NEVER = datetime.min.replace(tzinfo=UTC)


def names(pem: str, *, dns: bool, now: datetime) -> tuple[str, ...]:
    """The names of a URL-encoded PEM, `spiffe://...` first, then `dns:...` where those count.

    None when it cannot be read, or is past its end: Envoy looks at that only when a connection is made.
    """
    ends_at, found = _read(pem, dns=dns)
    return found if now < ends_at else ()


@lru_cache(maxsize=10_000)
def _read(pem: str, *, dns: bool) -> tuple[datetime, tuple[str, ...]]:
    try:
        certificate = x509.load_pem_x509_certificate(unquote_to_bytes(pem))
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return _NEVER, ()
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    found = [uri for uri in uris if uri.startswith(_SPIFFE)] if len(uris) == 1 else []
    if dns:
        found += [f"dns:{name.lower()}" for name in alternatives.get_values_for_type(x509.DNSName)]
    return certificate.not_valid_after_utc, tuple(found)
