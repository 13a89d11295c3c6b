"""Which requests run through this worker, and how is one of them stopped?

A stop comes from elsewhere at any moment: before the request was let pass, before the Router has answered, in the midst
of a stream, after its end. Everything here runs in the worker's one event loop and waits for nothing, so that the
messages of a stream never interleave, and a stop is written once or not at all.
"""

from collections.abc import Callable, Iterable
from typing import Any

from authz import routes
from authz.arrival import Arrival
from extproc import wire
from extproc.holder import Holder, holder_of
from extproc.inline import InlineResponse
from extproc.lifecycle import Cause
from extproc.once import Recording
from extproc.record import Admission
from extproc.recorded_answer import SeenResponse
from extproc.wire import Phase
from transport.service import Stream

_MS_PER_SECOND = 1000


class LiveRequest:
    """One request whose ext_proc stream this worker holds. `now` is seconds since the epoch."""

    def __init__(self, stream: Stream, arrival: Arrival, *, now: Callable[[], float]) -> None:
        self._stream = stream
        self._dialect = routes.dialect_of(arrival.path)
        self._now = now
        self._asked: Cause | None = None
        self._response: InlineResponse | SeenResponse | None = None
        self.id = arrival.request_id
        self.admission: Admission | None = None
        """None until it is let pass."""
        self.recording: Recording | None = None
        """Keeps its answer for a retry; None without an idempotency key."""
        self.stopped: Cause | None = None
        """Why this worker has ended it; None while it has not."""

    @property
    def answered(self) -> bool:
        """Whether Envoy is known to have its whole answer: never, of what is metered natively."""
        return self._response is not None and self._response.ended

    def let_pass(self, reply: bytes, admission: Admission, response: InlineResponse | SeenResponse) -> None:
        """Answer that it may run, and stop it at once when that was asked for meanwhile.

        The answer goes out in that case too: the mark that it carries is what the request is settled by.
        """
        self.admission, self._response = admission, response
        self._stream.write(reply)
        if self._asked is not None:
            self._write_stop(self._asked)

    def stop(self, cause: Cause) -> None:
        """End it for this cause, at the latest when it is let pass; the first cause stays."""
        if self._asked is not None or self.stopped is not None:
            return
        self._asked = cause
        if self.admission is not None:
            self._write_stop(cause)

    def take(self, phase: str | None, message: Any) -> None:
        """Answer for a part of its response. Only what is metered in line passes here.

        Of a stream that was ended, some pieces may still be on their way; an answer to them would be one too many.
        """
        response = self._response
        if response is None or self.stopped is not None:
            return
        if phase == Phase.RESPONSE_BODY:
            self._write(response.body(message, now_ms=int(self._now() * _MS_PER_SECOND)))
            self.stopped = response.stopped
        elif phase == Phase.RESPONSE_HEADERS:
            self._stream.write(response.headers(message))
        elif phase == Phase.RESPONSE_TRAILERS:
            self._write(response.trailers())

    def _write_stop(self, cause: Cause) -> None:
        response = self._response
        if self.answered:
            return
        self.stopped = cause
        last = None if response is None else response.stop(cause, now=self._now())
        if last is None:
            # No event stream, or none that passes here: Envoy answers with it, or resets what it has begun to send.
            last = [wire.stop(cause, dialect=self._dialect, request_id=self.id, now=self._now())]
        self._write(last)

    def _write(self, replies: Iterable[bytes]) -> None:
        for reply in replies:
            self._stream.write(reply)


class LiveRequests:
    """The requests of a worker, by id. `observe` is told why each one was stopped that was, when it has ended."""

    def __init__(self, *, observe: Callable[[Cause], None]) -> None:
        self._observe = observe
        self._by_id: dict[str, LiveRequest] = {}

    @property
    def count(self) -> int:
        """How many have been let pass."""
        return sum(request.admission is not None for request in self._by_id.values())

    def add(self, request: LiveRequest) -> None:
        """It is about to be admitted."""
        self._by_id[request.id] = request

    def remove(self, request: LiveRequest) -> None:
        """Its stream has ended, or it was refused."""
        if self._by_id.get(request.id) is request:
            del self._by_id[request.id]
        if request.stopped is not None:
            self._observe(request.stopped)

    def stop(self, request_id: str, cause: Cause) -> None:
        """Stop a request, if it is here."""
        request = self._by_id.get(request_id)
        if request is not None:
            request.stop(cause)

    def holders(self) -> set[Holder]:
        """On whose behalf requests run."""
        return {holder_of(request.admission) for request in self._by_id.values() if request.admission is not None}

    def stop_of(self, holders: set[Holder], cause: Cause) -> None:
        """Stop all that runs on behalf of these."""
        for request in self._by_id.values():
            if request.admission is not None and holder_of(request.admission) in holders:
                request.stop(cause)
