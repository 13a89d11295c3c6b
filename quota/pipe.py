"""How do commands reach Redis cheaply? All share one connection; those of one turn of the event loop, one write.

redis-py's client takes a connection from a pool, arms timers and waits for its answers, for every call anew: 230 µs of
CPU for a script. Here its connection (which knows TLS and passwords) is taken over once it is open, written to and
read from as Redis allows, many commands in flight, answers in their order: an eighth of that. Commands are packed by
hiredis, which takes an eighth of the time of redis-py's own packing.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from quota import redis_answers
from quota.reservation import QuotaOutage

Argument = str | bytes | int
_LAST_LOOK_SECONDS = 0.005
# A new connection may take longer than an answer; who waits for it has his own deadline.
_OPEN_SECONDS = 1.0


class Pipe(Protocol):
    """Takes commands to Redis, and their answers back."""

    @property
    def one_server(self) -> bool:
        """Whether one server holds all keys, so that one command may name keys of many shards."""

    def call(self, *command: Argument) -> Awaitable[Any]:
        """The answer to a command. Raises redis-py's ResponseError for an error answer, QuotaOutage for none."""

    async def aclose(self) -> None:
        """Close what is open; what is in flight is an outage."""


@dataclass(slots=True)  # not frozen: that would cost as much as the rest of a call's making
class _Call:
    command: tuple[Argument, ...]
    answer: "asyncio.Future[Any]"
    due: float


class RedisPipe:
    """One connection for all commands of a process. Every call ends within `deadline` seconds.

    A connection that does not answer in time, or breaks, is dropped with all that is in flight on it; the next call
    makes a new one. `connect` makes a connection that is not open yet.
    """

    one_server = True

    def __init__(self, connect: Callable[[], AbstractConnection], *, deadline: float) -> None:
        self._connect = connect
        self._deadline = deadline
        self._waiting: list[_Call] = []
        self._pending: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight: deque[_Call] = deque()
        self._connection: AbstractConnection | None = None
        self._socket: asyncio.WriteTransport | None = None
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """The answer to a command. Raises redis-py's ResponseError for an error answer, QuotaOutage for none.

        Commands reach Redis in the order of the calls, awaited or not, next to each other.
        """
        loop = asyncio.get_running_loop()
        call = _Call(command, loop.create_future(), loop.time() + self._deadline)
        if not self._waiting:
            loop.call_soon(self._start_batch)
        self._waiting.append(call)
        return call.answer

    async def aclose(self) -> None:
        """Close the connection; what is in flight is an outage."""
        connection = self._drop("the connection was closed")
        if connection is not None:
            await connection.disconnect(nowait=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_batch(self) -> None:
        batch, self._waiting = self._waiting, []
        self._pending.extend(batch)
        if self._timer is None:
            self._watch(self._deadline)
        if self._socket is None:
            self._spawn(self._open_and_send(batch))
        else:
            self._send(self._socket, batch)

    async def _open_and_send(self, batch: list[_Call]) -> None:
        try:
            self._send(await self._open(), batch)
        except (RedisError, OSError) as error:
            self._fail(batch, str(error) or type(error).__name__)

    def _send(self, socket: asyncio.WriteTransport, batch: list[_Call]) -> None:
        packed = _packed(batch)
        self._in_flight.extend(call for call in batch if not call.answer.done())
        socket.write(b"".join(packed))

    async def _open(self) -> asyncio.WriteTransport:
        async with self._opening:
            if self._socket is not None:
                return self._socket
            connection = self._connect()
            # The deadlines are ours: one timer for a batch, and one here.
            connection.socket_timeout = connection.socket_connect_timeout = None
            try:
                async with asyncio.timeout(max(self._deadline, _OPEN_SECONDS)):
                    await connection.connect()  # type: ignore[no-untyped-call]
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
            self._socket = redis_answers.take_over(
                connection, answered=partial(self._answered, connection), lost=partial(self._lost, connection)
            )
            return self._socket

    def _answered(self, connection: AbstractConnection, answer: Any) -> None:
        if connection is not self._connection:
            return
        if not self._in_flight:
            self._lost(connection, "Redis answers what nobody asked")
            return
        _resolve(self._in_flight.popleft(), answer)
        if _is_read_only(answer):
            # A primary that was demoted: by its name, the next connection leads to the new one.
            self._lost(connection, str(answer))

    def _lost(self, connection: AbstractConnection, why: str) -> None:
        if connection is self._connection:
            self._drop(why)
            self._spawn(_disconnected(connection))

    def _watch(self, seconds: float) -> None:
        # One timer for all calls, which end in the order in which they came.
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        while self._pending and self._pending[0].answer.done():
            self._pending.popleft()
        if not self._pending:
            return
        overdue = asyncio.get_running_loop().time() - self._pending[0].due
        if overdue >= _LAST_LOOK_SECONDS:
            self._fail(list(self._pending), f"no answer within {self._deadline:g} s")
            self._pending.clear()
            if self._connection is not None:
                self._lost(self._connection, "the connection was lost")
        else:
            # The loop itself may have been held up, and the answer may lie unread in its buffer: look once more.
            self._watch(max(-overdue, 0.0) + _LAST_LOOK_SECONDS)

    def _drop(self, why: str) -> AbstractConnection | None:
        connection, self._connection = self._connection, None
        self._socket = None
        self._fail(list(self._in_flight), why)
        self._in_flight.clear()
        return connection

    def _fail(self, calls: list[_Call], why: str) -> None:
        for call in calls:
            _resolve(call, QuotaOutage(f"Redis could not be asked: {why}"))

    def _spawn(self, coroutine: Any) -> "asyncio.Task[None]":
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _disconnected(connection: AbstractConnection) -> None:
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def _is_read_only(answer: Any) -> bool:
    # When it was a script that could not write, it stands in the middle of an error of another kind.
    return isinstance(answer, ReadOnlyError) or (isinstance(answer, ResponseError) and "READONLY" in str(answer))


def _packed(batch: list[_Call]) -> list[bytes]:
    packed = []
    for call in batch:
        if call.answer.done():
            continue
        try:
            # hiredis names tuples of one argument only in its types.
            packed.append(hiredis.pack_command(call.command))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:  # an argument that cannot be sent
            _resolve(call, error)
    return packed


def _resolve(call: _Call, answer: Any) -> None:
    if call.answer.done():  # the caller has left, or the deadline has passed
        return
    if isinstance(answer, Exception):
        call.answer.set_exception(answer)
    else:
        call.answer.set_result(answer)
