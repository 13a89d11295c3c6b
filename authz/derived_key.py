"""Which key serves which purpose, when there is one pepper? Each purpose has its own, derived from it (RFC 5869)."""

from functools import lru_cache

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32


@lru_cache(maxsize=16)
def derived_key(pepper: bytes, label: str) -> bytes:
    """The 32 bytes for this label; neither the pepper nor another label's key can be told from them."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=label.encode()).derive(pepper)
