"""What may one request come to, at most? Set by the plan, so that a runaway stream ends."""

import msgspec


class Caps(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The most that one request may last and write; 0 stands for no such bound.

    `stream_seconds` runs from the moment that the Router has the request. `output_tokens` is compared with what the
    caller names as maximum, and with the events that have passed; `response_bytes` with the bytes of the body.
    """

    stream_seconds: int = 0
    output_tokens: int = 0
    response_bytes: int = 0


NO_CAPS = Caps()
