"""What passes in a stream of Server-Sent Events?

Counts events, reads usage, and removes the usage event that the gateway asked for: the same that meter.lua does
inside Envoy, for streams that are metered in line.

Bytes in, bytes out, no I/O. Only an event that has the word "usage" in it is parsed.
"""

import re
from typing import Any

import msgspec

# An event ends with a blank line; lines end with LF or CRLF (WHATWG HTML, 9.2.5).
_EVENT_END = re.compile(rb"\n\r?\n")
_MAX_PARTIAL = 1_048_576


class StreamMeter:
    """Follows one stream. Holds back a partial event only when it may have to remove it."""

    def __init__(self, *, strip_usage: bool) -> None:
        self._strip = strip_usage
        self._partial = b""
        self.events = 0
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk as it came; returns what the client gets of it."""
        text, kept, start = self._partial + chunk, [], 0
        for end in _EVENT_END.finditer(text):
            event = text[start : end.end()]
            start = end.end()
            if self._passes(event):
                self.events += 1
                kept.append(event)
        self._partial = text[start:]
        if not self._strip:
            if len(self._partial) > _MAX_PARTIAL:  # no event at all: let it pass uncounted
                self._partial = b""
            return chunk
        if len(self._partial) > _MAX_PARTIAL:
            kept.append(self._partial)
            self._partial = b""
        return b"".join(kept)

    def _passes(self, event: bytes) -> bool:
        if b'"usage"' not in event:
            return True
        try:
            found = msgspec.json.decode(_data(event))
        except msgspec.DecodeError:
            return True
        if not isinstance(found, dict):
            return True
        self._note(found.get("usage"))
        return not (self._strip and found.get("choices") == [] and isinstance(found.get("usage"), dict))

    def _note(self, usage: Any) -> None:
        found = read_usage(usage)
        if found is not None:
            self.input_tokens, self.output_tokens = found


def read_usage(usage: Any) -> tuple[int | None, int | None] | None:
    """The tokens of a usage object, in OpenAI's words or those of /v1/infer; None when it is none."""
    if not isinstance(usage, dict):
        return None
    return (
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
    )


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**53:
        return None
    return int(value)


def _data(event: bytes) -> bytes:
    lines = (line.strip(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:"))
