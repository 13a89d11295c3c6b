"""Where in a list of requests was a reader, and how is that written into the cursor of a page?"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Self

_CURSOR = re.compile(r"(?P<ms>[0-9]{1,14})\.(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the order of requests: by when they were received, then by id. It never changes."""

    received_ms: int
    request_id: str

    def cursor(self) -> str:
        """The place as opaque text."""
        return base64.urlsafe_b64encode(f"{self.received_ms}.{self.request_id}".encode()).rstrip(b"=").decode()

    @classmethod
    def of(cls, cursor: str) -> Self | None:
        """The place that `cursor` wrote; None when it is none."""
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            return None
        found = _CURSOR.fullmatch(text)
        return None if found is None else cls(int(found["ms"]), found["id"])
