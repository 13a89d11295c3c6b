"""Who may speak to a server beyond this host? Whoever shows a certificate of the right CA, over TLS."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """What the server shows, and whom it believes, each as PEM."""

    certificate: bytes
    """The server's own, with the chain up to its CA."""
    key: bytes = field(repr=False)
    client_ca: bytes
    """Who vouches for clients. A client without a certificate of theirs is not answered."""
