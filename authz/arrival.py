"""What does Check note of a request itself, for Process and the access log to find beside the Grant?"""

import msgspec


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A request's id, its path without the query, and when Envoy received it, in milliseconds since the epoch.

    `idempotency_key` is what the client sent as `Idempotency-Key`, unquoted; empty without one.
    """

    request_id: str
    path: str
    received_ms: int
    idempotency_key: str = ""


_DECODER = msgspec.json.Decoder(Arrival)


def decode(text: str) -> Arrival:
    """Read an Arrival from its text; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
