"""What passes in a stream of Server-Sent Events?

Counts events, sees the stream's own end, and takes out what is not the client's: the usage event that the gateway asked
for, and the Router's words on its decision and its cost. The same that meter.lua does inside Envoy, for streams that
pass through the sidecar. Bytes in, bytes out, no I/O. Only an event that says something of the above is read.
"""

import re

import msgspec

# An event ends with a blank line; lines end with LF or CRLF (WHATWG HTML, 9.2.5).
_EVENT_END = re.compile(rb"\n\r?\n")
_WHOLE = re.compile(rb"[^\r\n]\r?\n\r?\n\Z")
_LONGEST_END = 5
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
# A comment of the Router, told in its last events: `: x-router-cost {"total_usd": "0.0013"}`.
_WORD = re.compile(rb"^: x-router-(decision|cost) ([^\n]*?)\r?\n", re.MULTILINE)
_WORD_BEGINS = b": x-router-"
_MAX_WORD_BYTES = 8192
_NO_ASCII = re.compile(rb"[^\t -~]")
_NO_COMMENT = re.compile(rb"^[^:\r\n]", re.MULTILINE)
_PING = re.compile(rb"^event: ?ping[ \t\r]*$", re.MULTILINE)
_ENDS_RESPONSE = re.compile(rb"response\.(?:completed|incomplete|failed)")
# At the beginning of a line, where no text of a model can stand: JSON has no raw newline.
_END = re.compile(
    rb"^(?:data: ?\[DONE\]|event: ?(?:message_stop|response\.(?:completed|incomplete|(failed))))[ \t\r]*$", re.MULTILINE
)
_BLANK = (b"\n", b"\r\n")
# Longer than any event of a model: a body without event ends is passed on unread.
_MAX_PARTIAL = 1_048_576


class StreamMeter:
    """Follows one stream, and holds back a partial event until it is whole.

    `events` are those with data in them that are no ping: what an answer of unknown usage is reckoned by. `done` says
    that the stream's own end has passed, `failed` that it was the Responses API's word for a failure. `words` are the
    Router's, the last of each kind.
    """

    def __init__(self, *, strip_usage: bool) -> None:
        self._strip = strip_usage
        self._partial = b""
        self._unread = False  # in the midst of an event that is too long; `_partial` has passed already
        self.events = 0
        self.done = False
        self.failed = False
        self.words: dict[str, str] = {}

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk as it came; returns what the client gets now."""
        if not self._partial and not self._unread and self._is_plain(chunk):
            self.events += len(_EVENT_END.findall(chunk))
            return chunk
        text, kept, start = self._partial + chunk, [], 0
        # An end may begin in what was held, at most two bytes before the new ones.
        for end in _EVENT_END.finditer(text, max(0, len(self._partial) - 2)):
            kept.append(self._passed(text[start : end.end()]))
            start = end.end()
        kept.append(self._hold(text[start:]))
        return b"".join(kept)

    def rest(self) -> bytes:
        """What the client gets once no more comes; an incomplete event is void (WHATWG HTML, 9.2.6).

        It is dropped with the usage event, whose part it may be, and passes as it came otherwise.
        """
        partial, self._partial = self._partial, b""
        if self._strip or self._unread:
            return b""
        line = partial[partial.rfind(b"\n") + 1 :]
        cut = len(partial) - len(line) if _may_be_word(line) else len(partial)
        return _WORD.sub(b"", partial[:cut])

    def _is_plain(self, chunk: bytes) -> bool:
        """Whether it is whole events with no more in them than an answer's text: nearly all are."""
        return _WHOLE.search(chunk, max(0, len(chunk) - _LONGEST_END)) is not None and not (
            b"\n:" in chunk
            or b"[DONE]" in chunk
            or b"ping" in chunk
            or b"message_stop" in chunk
            or (b"response." in chunk and _ENDS_RESPONSE.search(chunk) is not None)
            or chunk.startswith(b":")
            or (self._strip and _USAGE.search(chunk) is not None)
        )

    def _passed(self, event: bytes) -> bytes:
        """What the client gets of a whole event, which is counted if it is one."""
        if self._unread:
            event, self._partial, self._unread = event[len(self._partial) :], b"", False
        else:
            if event.startswith(b":") or b"\n:" in event:
                event = _WORD.sub(self._note, event)
                if not _NO_COMMENT.search(event):
                    return b"" if event in _BLANK else event
            if self._strip and _is_usage_event(event):
                return b""
            if _PING.search(event):
                return event
            if (end := _END.search(event)) is not None:
                self.done, self.failed = True, end[1] is not None
        self.events += 1
        return event

    def _hold(self, partial: bytes) -> bytes:
        """Keep a partial event, if it is not too long; returns what passes of it."""
        if self._unread:
            new = partial[len(self._partial) :]
            self._partial = _tail(partial)
            return new
        if len(partial) <= _MAX_PARTIAL:
            self._partial = partial
            return b""
        self._partial, self._unread = _tail(partial), True
        return _WORD.sub(b"", partial)

    def _note(self, word: re.Match[bytes]) -> bytes:
        if len(word[2]) <= _MAX_WORD_BYTES and not _NO_ASCII.search(word[2]):
            self.words[word[1].decode()] = word[2].decode()
        return b""


def _tail(partial: bytes) -> bytes:
    """What may be the beginning of an event's end."""
    return next((tail for tail in (b"\n\r", b"\n") if partial.endswith(tail)), b"")


def _may_be_word(line: bytes) -> bool:
    return bool(line) and (_WORD_BEGINS.startswith(line) or line.startswith(_WORD_BEGINS))


def _is_usage_event(event: bytes) -> bool:
    """The last event of `stream_options.include_usage`: no choices, and the usage of the whole stream."""
    if not _USAGE.search(event):
        return False
    try:
        found = msgspec.json.decode(_data(event))
    except msgspec.DecodeError:
        return False
    return isinstance(found, dict) and found.get("choices") == [] and isinstance(found.get("usage"), dict)


def _data(event: bytes) -> bytes:
    lines = (line.strip(b"\r") for line in event.split(b"\n"))
    return b"\n".join(line[5:].lstrip(b" ") for line in lines if line.startswith(b"data:"))
