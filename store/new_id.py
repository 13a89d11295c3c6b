"""What is a new organization or tenant known by, for ever? A prefix and 80 random bits."""

import secrets

_ID_BYTES = 10


def new_id(prefix: str) -> str:
    """Return an id such as `ten_d61aef583f57c2649349`."""
    return f"{prefix}_{secrets.token_hex(_ID_BYTES)}"
