"""Which tokens has this worker found right before? API keys among them need not be taken apart and hashed anew.

Held is a digest under a key that this process made up, never the token itself: the checksum and the keyed hash of an
API key cost several times as much. Whether a token still opens anything is asked of directory and sessions each time.
"""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b

from authz.proof import Proofs

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Recognised:
    """A key that was right: its keyed hash, and what it proved when it was last looked up."""

    hash: bytes = field(repr=False)
    proofs: Proofs


class Recognition:
    """Remembers a bounded number of tokens, those that were right last."""

    def __init__(self, *, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._salt = secrets.token_bytes(_DIGEST_BYTES)
        self._held: OrderedDict[bytes, Recognised | None] = OrderedDict()

    def knows(self, text: str) -> bool:
        """Whether the token was right before, whatever it is now."""
        return self._digest(text) in self._held

    def find(self, text: str) -> Recognised | None:
        """What is known of the text of an API key."""
        return self._held.get(self._digest(text))

    def note(self, text: str) -> None:
        """Know the token from now on; it is no API key."""
        self.remember(text, None)

    def remember(self, text: str, found: Recognised | None) -> None:
        """Know the token from now on, and what an API key proved."""
        digest = self._digest(text)
        self._held[digest] = found
        self._held.move_to_end(digest)
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)

    def _digest(self, text: str) -> bytes:
        return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES, key=self._salt).digest()
