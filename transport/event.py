"""What happened on a connection of HTTP/2, for whoever serves its streams?"""

from dataclasses import dataclass

from transport.error_code import ConnectionFault, ErrorCode
from transport.request import Request

# Not frozen: that doubles the cost of making one, and each request makes several.


@dataclass(slots=True)
class Opened:
    """A stream begins with a request. `ended`: there is no body."""

    stream_id: int
    request: Request
    ended: bool


@dataclass(slots=True)
class Received:
    """A piece of a stream's body. `octets` of the flow-control window wait for `Connection.consumed`."""

    stream_id: int
    data: bytes
    octets: int
    ended: bool


@dataclass(slots=True)
class Drained:
    """All that was written to a stream has left, after it had to wait."""

    stream_id: int


@dataclass(slots=True)
class Reset:
    """A stream is over, by the peer's word or by its fault."""

    stream_id: int
    code: ErrorCode | int


@dataclass(slots=True)
class Failed:
    """The connection is over, by the peer's fault. What is left to send says so; then it is to be closed."""

    fault: ConnectionFault


Event = Opened | Received | Drained | Reset | Failed
