"""How do Redis' answers come in at no more than their own cost? Parsed as they arrive, without a reader to wake.

redis-py opens the connection (names, TLS, passwords, the version of the protocol); then it is taken over: its own way
of reading an answer is four coroutines and a copy for each.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

_NOT_YET = object()


class Answers(asyncio.Protocol):
    """The receiving end of a connection to Redis.

    `answered` takes the answers in the order of the commands, an error as redis-py's exception. `lost` is told why
    there come no more, or none that make sense.
    """

    def __init__(self, answered: Callable[[Any], None], lost: Callable[[str], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_NOT_YET
        )

    def data_received(self, data: bytes) -> None:
        """Hand on every answer that is whole now."""
        self._reader.feed(data)
        while True:
            try:
                answer = self._reader.gets()
            except InvalidResponse as error:
                self._lost(str(error))
                return
            if answer is _NOT_YET:
                return
            if isinstance(answer, RedisConnectionError):  # such as LOADING
                self._lost(str(answer))
                return
            if not isinstance(answer, hiredis.PushNotification):
                self._answered(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who asked."""
        self._lost(str(exc or "Redis closed the connection"))


def take_over(
    connection: AbstractConnection, *, answered: Callable[[Any], None], lost: Callable[[str], None]
) -> asyncio.WriteTransport:
    """Hear the answers of an open connection, and give what writes to it. All that came so far must have been read."""
    transport = cast("asyncio.WriteTransport", connection._writer.transport)  # type: ignore[union-attr]  # noqa: SLF001
    transport.set_protocol(Answers(answered, lost))
    return transport
