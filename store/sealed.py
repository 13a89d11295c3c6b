"""How is a secret kept that must be read again? Under AES-GCM, with a key that comes from the pepper.

`key` is `authz.derived_key.derived_key` for one purpose: what was sealed for another does not open.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE_BYTES = 12


class Unopened(Exception):
    """It was sealed with another pepper, for another row, or is no sealed secret."""


def seal(secret: bytes, *, key: bytes, row: str) -> bytes:
    """Encrypt the secret of this row: it opens for no other."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, row.encode())


def unseal(sealed: bytes, *, key: bytes, row: str) -> bytes:
    """The secret again; raises `Unopened`."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], row.encode())
    except (InvalidTag, ValueError):  # ValueError: too short
        raise Unopened(f"the secret of {row} was not stored with this pepper") from None
