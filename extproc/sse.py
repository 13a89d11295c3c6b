"""What passes in a stream of Server-Sent Events?

Counts events and removes the usage event that the gateway asked for: the same that meter.lua does inside Envoy, for
streams that pass through the sidecar. Bytes in, bytes out, no I/O. Only an event with the word "usage" in it is parsed.
"""

import re

import msgspec

# An event ends with a blank line; lines end with LF or CRLF (WHATWG HTML, 9.2.5).
_EVENT_END = re.compile(rb"\n\r?\n")
# Longer than any event of a model: a body without event ends is passed on uncounted.
_MAX_PARTIAL = 1_048_576


class StreamMeter:
    """Follows one stream. Holds back a partial event only when it may have to remove it."""

    def __init__(self, *, strip_usage: bool) -> None:
        self._strip = strip_usage
        self._partial = b""
        self.events = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk as it came; returns what the client gets of it."""
        text, kept, start = self._partial + chunk, [], 0
        for end in _EVENT_END.finditer(text):
            event = text[start : end.end()]
            start = end.end()
            if not (self._strip and _is_usage_event(event)):
                self.events += 1
                kept.append(event)
        self._partial = text[start:]
        if len(self._partial) > _MAX_PARTIAL:
            kept.append(self._partial)
            self._partial = b""
        return b"".join(kept) if self._strip else chunk


def _is_usage_event(event: bytes) -> bool:
    """The last event of `stream_options.include_usage`: no choices, and the usage of the whole stream."""
    if b'"usage"' not in event:
        return False
    try:
        found = msgspec.json.decode(_data(event))
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and found.get("choices") == [] and isinstance(found.get("usage"), dict)


def _data(event: bytes) -> bytes:
    lines = (line.strip(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:"))
