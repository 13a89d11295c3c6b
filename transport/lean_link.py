"""What happens on the socket of one connection to the lean server? asyncio's side of `Connection`."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from transport import grpc_request
from transport.connection import Connection
from transport.error_code import ErrorCode
from transport.event import Drained, Event, Failed, Opened, Received, Reset
from transport.grpc_request import Asked, Method, Rejected
from transport.grpc_status import Code, Status
from transport.lean_call import Call, Line
from transport.limits import Limits
from transport.request import Request
from transport.underway import Underway

_GREETING_SECONDS = 10.0
_CLOSING_SECONDS = 5.0
# In all calls of a connection: of messages that are not whole, and of answers that the peer does not take.
_MOST_HELD_OCTETS = 134_217_728
_MOST_REQUESTS_KNOWN = 256
_TOO_MUCH = Status(Code.RESOURCE_EXHAUSTED, "too many large messages at once")
_LATE = Status(Code.DEADLINE_EXCEEDED, "the deadline has passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the connections of a server share."""

    methods: Mapping[bytes, Method]
    most_message_octets: int
    observe_error: Callable[[Exception], None]
    limits: Limits
    underway: Underway
    links: set["Link"]


class Link(asyncio.Protocol):
    """One connection and its calls. Whatever is to be said in one turn of the event loop leaves in one write."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(serving.limits)
        self._calls: dict[int, Call] = {}
        self._running = 0
        self._held_octets = 0
        self._transport: asyncio.Transport | None = None
        self._flushing = self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[Request, Asked | Rejected] = {}
        self._line = Line(
            connection=self._connection,
            flush=self.flush_soon,
            done=self._call_done,
            observe_error=serving.observe_error,
            grew=self._grew,
            limit=serving.most_message_octets,
            loop=self._loop,
        )
        self.closed = self._loop.create_future()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods only
        self._serving.links.add(self)
        self._flush()
        self._loop.call_later(_GREETING_SECONDS, self._require_greeting)

    def data_received(self, data: bytes) -> None:
        """Take in what the peer sent."""
        self._take(self._connection.receive(data))

    def pause_writing(self) -> None:
        """Hold answers back, and take no more questions: the peer does not read."""
        self._connection.hold()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport is not None:
            self._transport.resume_reading()
        self._take(self._connection.release())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is the protocol's
        """Let all calls go."""
        self._serving.links.discard(self)
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._abandon_all()
        if not self.closed.done():
            self.closed.set_result(None)

    # The server's side

    def calm(self) -> None:
        """A second has passed."""
        self._connection.calm()

    def drain(self) -> None:
        """Let the peer open no more streams."""
        self._draining = True
        self._connection.drain()
        self.flush_soon()

    @property
    def has_endless(self) -> bool:
        """Whether a call is under way that nobody waits for."""
        return any(call.endless for call in self._calls.values())

    def end_calls(self, status: Status) -> None:
        """End all that still runs; what is endless ends well."""
        for call in list(self._calls.values()):
            call.fail(Status(Code.OK) if call.endless else status)

    def close(self) -> None:
        """Send what is left, and go; a peer that does not read is not waited for long."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(_CLOSING_SECONDS, self.abort)

    def abort(self) -> None:
        """Go at once."""
        if self._transport is not None:
            self._transport.abort()

    # What the peer wants

    def _take(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Received():
                    self._received(event)
                case Opened():
                    self._opened(event)
                case Reset():
                    self._abandon(event.stream_id)
                case Drained():
                    self._drained(event.stream_id)
                case Failed():
                    self._serving.observe_error(event.fault)
                    self._abandon_all()
                    self.close()
        self.flush_soon()

    def _opened(self, event: Opened) -> None:
        stream_id, request = event.stream_id, event.request
        # Handlers that were cancelled may still be at it, while their streams are gone: they count as well.
        if self._running >= self._serving.limits.streams:
            self._connection.reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        asked = self._asked.get(request) or self._read(request)
        if isinstance(asked, Rejected):
            self._connection.end(stream_id, asked.block)
            return
        expires_at = None if asked.timeout_seconds is None else self._loop.time() + asked.timeout_seconds
        call = Call(self._line, stream_id, asked, expires_at)
        self._calls[stream_id] = call
        self._running += 1
        if not call.endless:
            self._serving.underway.begin()
        if expires_at is not None:
            self._expire_at(expires_at)
        call.start()
        if event.ended:
            call.take(b"", 0, ended=True)

    def _read(self, request: Request) -> Asked | Rejected:
        if len(self._asked) >= _MOST_REQUESTS_KNOWN:
            self._asked.clear()
        self._asked[request] = asked = grpc_request.read(request, self._serving.methods)
        return asked

    def _grew(self, octets: int) -> None:
        self._held_octets += octets

    def _received(self, event: Received) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            self._connection.consumed(event.stream_id, event.octets)
            return
        call.take(event.data, event.octets, ended=event.ended)
        if self._held_octets + self._connection.all_waiting_octets > _MOST_HELD_OCTETS:
            call.fail(_TOO_MUCH)

    def _drained(self, stream_id: int) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.drained()

    def _abandon(self, stream_id: int) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.abandon()

    def _abandon_all(self) -> None:
        for call in list(self._calls.values()):
            call.abandon()

    def _call_done(self, call: Call) -> None:
        if self._calls.pop(call.stream_id, None) is None:
            return
        self._running -= 1
        if not call.endless:
            self._serving.underway.end()

    # Time, and sending

    def _require_greeting(self) -> None:
        if not self._connection.acknowledged:
            self.abort()

    def _expire_at(self, when: float) -> None:
        """Look at the deadlines then. Nearly all calls end before: one timer serves them all."""
        if self._timer is not None and self._timer.when() <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now, first = self._loop.time(), math.inf
        for call in list(self._calls.values()):
            if call.expires_at is None:
                continue
            if call.expires_at <= now:
                call.fail(_LATE)
            else:
                first = min(first, call.expires_at)
        if first < math.inf:
            self._expire_at(first)

    def flush_soon(self) -> None:
        """Send at the end of this turn what there is to say."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        transport, data = self._transport, self._connection.take()
        if transport is None or transport.is_closing():
            return
        if data:
            transport.write(data)
        if self._draining and self._connection.idle and self._connection.closing and not self._calls:
            transport.close()
