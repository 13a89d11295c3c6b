"""What is remembered of one stream of HTTP/2 while it is open? RFC 9113 section 5.1."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Http2Stream:
    """A stream that a client opened. It is gone when neither side may send any more, or one has reset it."""

    id: int
    send_window: int
    receive_window: int
    remote_open: bool = True
    """Whether the peer may send: until its END_STREAM."""
    expected: int | None = None
    """Octets of body still to come, of a request that has a content-length."""
    answered: bool = False
    unconsumed: int = 0
    """Octets received that nobody has consumed."""
    uncredited: int = 0
    """Octets consumed that the peer has not been told of."""
    waiting: deque[bytes] = field(default_factory=deque)
    """What windows leave no room for."""
    waiting_octets: int = 0
    offset: int = 0
    """How much of the first that waits has left."""
    trailers: bytes | None = None
    """The header block that ends it, once what waits has left."""
