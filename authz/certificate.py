"""Whom does a client certificate name? Envoy has verified it; here only its names are read.

SPIFFE X.509-SVID (https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md, section 2): the id is the one
URI among the subject alternative names; a certificate with several URIs is no SVID.
"""

from functools import lru_cache
from urllib.parse import unquote_to_bytes

from cryptography import x509

_SPIFFE = "spiffe://"


@lru_cache(maxsize=10_000)
def names(pem: str, *, dns: bool) -> tuple[str, ...]:
    """The names of a URL-encoded PEM, `spiffe://...` first, then `dns:...` where those count; none when unreadable."""
    try:
        certificate = x509.load_pem_x509_certificate(unquote_to_bytes(pem))
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return ()
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    found = [uri for uri in uris if uri.startswith(_SPIFFE)] if len(uris) == 1 else []
    if dns:
        found += [f"dns:{name.lower()}" for name in alternatives.get_values_for_type(x509.DNSName)]
    return tuple(found)
