"""Has an answer passed what its plan lets one request write?"""

from authz.caps import Caps

# What opens and closes a stream beside its tokens: at most eight events in the dialects that there are.
_FRAMING_EVENTS = 8


def exceeds(caps: Caps, *, events: int, response_bytes: int) -> bool:
    """Whether these events of a stream, or bytes of any answer, are more than the caps allow. An event is a token."""
    return bool(
        (caps.output_tokens and events > caps.output_tokens + _FRAMING_EVENTS)
        or (caps.response_bytes and response_bytes > caps.response_bytes)
    )
