"""What becomes of one call on the lean server? Its messages, its handler, its end."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from transport.connection import Connection
from transport.grpc_message import PREFIX_OCTETS, MessageFault, Messages, framed
from transport.grpc_request import Asked
from transport.grpc_status import HEADERS, OK, OK_ALONE, Code, Status, alone, trailers

_MOST_WAITING_OCTETS = 262_144
_FAILED = Status(Code.UNKNOWN, "the handler failed")
_CANCELLED = Status(Code.CANCELLED, "the handler gave up")
_NOT_ONE_MESSAGE = Status(Code.UNIMPLEMENTED, "the method takes one message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a call needs of its connection. `flush` sends soon what the connection has to say."""

    connection: Connection
    loop: asyncio.AbstractEventLoop
    flush: Callable[[], None]
    done: Callable[["Call"], None]
    observe_error: Callable[[Exception], None]
    grew: Callable[[int], None]
    """Told by how many octets the messages that are not whole have grown, or shrunk."""
    limit: int
    """Octets of a message."""


class Call:
    """One call; for the handler of a stream it is the seam's `Stream`.

    `expires_at` is the event loop's time at which the caller waits no more, or None.
    """

    __slots__ = (
        *("_arrival", "_asked", "_ended", "_headed", "_line", "_messages", "_over", "_queue", "_queued_octets"),
        *("_room", "_started", "_task", "_uncredited", "expires_at", "stream_id"),
    )

    def __init__(self, line: Line, stream_id: int, asked: Asked, expires_at: float | None) -> None:
        self.stream_id = stream_id
        self.expires_at = expires_at
        self._line = line
        self._asked = asked
        self._messages = Messages(line.limit, line.grew)
        self._queue: deque[bytes] = deque()
        self._queued_octets = self._uncredited = 0
        self._ended = self._headed = self._over = self._started = False
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def endless(self) -> bool:
        """Whether a server that stops does not wait for it."""
        return self._asked.method.endless

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """What runs its handler."""
        return self._task

    # The handler's side

    async def read(self) -> bytes | None:
        """Wait for the peer's next message; None when it has ended its side.

        Not before most of what was written has left: a handler goes no faster than its peer.
        """
        while self._line.connection.waiting_octets(self.stream_id) > _MOST_WAITING_OCTETS:
            self._room = self._line.loop.create_future()
            await self._room
        while not self._queue:
            if self._ended:
                return None
            self._arrival = self._line.loop.create_future()
            await self._arrival
        message = self._queue.popleft()
        self._queued_octets -= PREFIX_OCTETS + len(message)
        self._credit()
        return message

    def write(self, message: bytes) -> None:
        """Send a message, if the call is not over."""
        if self._over:
            return
        connection = self._line.connection
        if not self._headed:
            self._headed = True
            connection.send_headers(self.stream_id, HEADERS)
        connection.send_data(self.stream_id, framed(message))
        self._line.flush()

    # The peer's side

    def start(self) -> None:
        """Begin; the handler of a unary call waits for its message."""
        if self._asked.method.stream is not None:
            self._run()

    def take(self, data: bytes, octets: int, *, ended: bool) -> None:
        """Take in a piece of the body, which fills so many octets of the windows."""
        self._uncredited += octets
        try:
            found = self._messages.take(data) if data else []
            if ended:
                self._messages.end()
        except MessageFault as fault:
            self.fail(fault.status)
            return
        for message in found:
            self._queue.append(message)
            self._queued_octets += PREFIX_OCTETS + len(message)
        self._ended = ended
        if self._asked.method.unary is not None:
            self._take_request()
        elif self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        self._credit()

    def drained(self) -> None:
        """All that was written has left."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def fail(self, status: Status) -> None:
        """End the call by this side: the handler is cancelled, and the peer told why, whatever waits for it."""
        if not self._over:
            self._line.connection.discard(self.stream_id)
        self._finish(status)
        self.abandon()

    def abandon(self) -> None:
        """The call is over: nobody hears its handler, which is cancelled."""
        self._over = True
        self._messages.forget()
        if self._task is None or not self._started:
            self._line.done(self)
        if self._task is not None:
            self._task.cancel()

    def _take_request(self) -> None:
        if len(self._queue) > 1 or (self._ended and not self._queue):
            self.fail(_NOT_ONE_MESSAGE)
        elif self._ended:
            self._run()

    def _run(self) -> None:
        self._task = self._line.loop.create_task(self._run_to_end())

    async def _run_to_end(self) -> None:
        self._started = True
        method = self._asked.method
        try:
            if method.unary is not None:
                self.write(await method.unary(self._queue.popleft()))
            elif method.stream is not None:
                await method.stream(self)
            self._finish(None)
        except asyncio.CancelledError:
            self._finish(_CANCELLED)  # by itself: whoever cancels a call has ended it before
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its caller is told that it failed
            self._line.observe_error(error)
            self._finish(_FAILED)
        finally:
            self._over = True
            self._line.done(self)

    def _finish(self, status: Status | None) -> None:
        """Send the end; None is OK."""
        if self._over:
            return
        self._over = True
        if status is None:
            block = OK if self._headed else OK_ALONE
        else:
            block = trailers(status) if self._headed else alone(status)
        self._line.connection.end(self.stream_id, block)
        self._line.flush()

    def _credit(self) -> None:
        """Open the windows by all that is held in no queue."""
        free = self._uncredited - self._queued_octets
        if free > 0:
            self._uncredited -= free
            self._line.connection.consumed(self.stream_id, free)
            self._line.flush()
