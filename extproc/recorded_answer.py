"""What is kept of an answer, so that a retry of its request can be given the same? Collects it as it passes, bounded.

Only a whole JSON answer of success is kept. A stream is not: who reads it anew would pay for none of it, and its
events are worth something only as they come.
"""

from collections.abc import Iterator
from typing import Any

from extproc import wire
from extproc.idempotency import MAX_ANSWER_BYTES, Answer
from extproc.lifecycle import Cause
from extproc.wire import Phase

_SUCCESS = range(200, 300)
_JSON = "application/json"
_NO_CONTENT = 204


class RecordedAnswer:
    """One answer. It is `whole` when its last piece has been seen and it was worth keeping."""

    def __init__(self) -> None:
        self._status = 0
        self._content_type = ""
        self._pieces: list[bytes] = []
        self._size = 0
        self.wanted = False
        """Whether the pieces of the body are to be seen; known with the headers."""
        self.whole: Answer | None = None

    def see(self, phase: str | None, message: Any) -> None:
        """Take note of a part of the response."""
        if phase == Phase.RESPONSE_HEADERS:
            self._see_headers(message)
        elif phase == Phase.RESPONSE_BODY and self.wanted:
            self._see_piece(message.response_body)
        elif phase == Phase.RESPONSE_TRAILERS and self.wanted:
            self._finish()

    def _see_headers(self, message: Any) -> None:
        status, headers = wire.response_head(message)
        content_type = headers.get("content-type", "")
        self._status, self._content_type = status, content_type
        # What is compressed is of use to those alone who can read it; the Router is never asked to (authz/wire.py).
        # Nor is its body shown where Envoy has unpacked it: its end would not reach us (docs/envoy.md).
        plain = headers.get("content-encoding", "identity") == "identity" and not wire.is_coded(message)
        is_json = content_type.partition(";")[0].strip().lower() == _JSON
        self.wanted = status in _SUCCESS and status != _NO_CONTENT and is_json and plain and _fits(headers)

    def _see_piece(self, piece: Any) -> None:
        self._size += len(piece.body)
        if self._size > MAX_ANSWER_BYTES:
            self.wanted = False
            self._pieces.clear()
            return
        self._pieces.append(piece.body)
        if piece.end_of_stream:
            self._finish()

    def _finish(self) -> None:
        body = b"".join(self._pieces)
        self.whole = Answer(status=self._status, content_type=self._content_type, body=body)
        self.wanted = False


class SeenResponse:
    """The answers to Envoy for a response that is metered natively, and of which `answer` may want the body.

    Its events do not pass here, so there is no last one to be written: it is stopped from outside, or not at all.
    """

    def __init__(self, answer: RecordedAnswer) -> None:
        self._answer = answer
        self.ended = False
        """Whether Envoy has the whole of it."""
        self.stopped: Cause | None = None

    def headers(self, _: Any) -> bytes:
        """Answer for the response headers, which `answer` has seen."""
        return wire.show_body() if self._answer.wanted else wire.leave_body()

    def body(self, message: Any, *, now_ms: int) -> Iterator[bytes]:  # noqa: ARG002 - as for a response in line
        """Answer for a piece of the response body."""
        self.ended = message.response_body.end_of_stream
        yield wire.pass_piece()

    def trailers(self) -> Iterator[bytes]:
        """Answer for the response trailers."""
        self.ended = True
        yield wire.pass_trailers()

    def stop(self, _: Cause, *, now: float) -> None:
        """Nothing that is written here could end it."""


def _fits(headers: dict[str, str]) -> bool:
    """Whether the answer may be small enough; one that does not say how long it is may be."""
    length = headers.get("content-length", "0")
    return length.isdecimal() and int(length) <= MAX_ANSWER_BYTES
