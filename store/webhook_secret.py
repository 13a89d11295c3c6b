"""What do a tenant and the gateway share, so that a webhook can be told from a forgery? 32 random bytes.

Written as Standard Webhooks has it, `whsec_` and base64 (https://www.standardwebhooks.com), shown once, and kept
encrypted with a key that comes from the pepper.
"""

import base64
import secrets

from authz.derived_key import derived_key
from store.sealed import Unopened, seal, unseal

PREFIX = "whsec_"
_BYTES = 32
_PURPOSE = "webhook-secret"


def generate() -> bytes:
    """A new secret."""
    return secrets.token_bytes(_BYTES)


def text_of(secret: bytes) -> str:
    """The secret as its tenant gets it."""
    return PREFIX + base64.b64encode(secret).decode()


def sealed(secret: bytes, webhook_id: str, pepper: bytes) -> bytes:
    """The secret as it is stored, for this webhook only."""
    return seal(secret, key=derived_key(pepper, _PURPOSE), row=webhook_id)


def opened(stored: bytes, webhook_id: str, pepper: bytes) -> bytes | None:
    """The secret again; None when it was stored with another pepper."""
    try:
        return unseal(stored, key=derived_key(pepper, _PURPOSE), row=webhook_id)
    except Unopened:
        return None
