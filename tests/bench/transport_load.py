"""How fast does Envoy answer on plain HTTP when every connection always has a request under way?

As json_load.py, without TLS: a call's cost is small, and so must be what is around it. In a thread of the benchmark's
own process, which does nothing else meanwhile.
"""

import itertools
import selectors
import socket
import time

from tests.bench.connection import HOST, SILENCE_SECONDS, WrongAnswer, require_ok, whole_length
from tests.bench.job import Outcome
from tests.bench.json_load import BODY
from tests.bench.transport_envoy import ANSWER

_READ = 65_536
_MS = 1000
_HEAD = (
    f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    f"content-length: {len(BODY)}\r\ntraceparent: 00-"
).encode()
# A W3C trace id is 32 digits, a span id 16. Spread over all digits, as random ones are, for Envoy sends zeros shorter.
_REST = b"%032x-%016x-01\r\n\r\n"
_SPREAD, _TRACES, _SPANS = 0x9E3779B97F4A7C15F39CC0605CEDC835, 2**128, 2**64
_ANSWER = ANSWER.encode()


class PlainLoad:
    """Keep-alive connections, each of which sends its next request when it has its answer."""

    _numbers = itertools.count(1)

    def __init__(self, port: int, connections: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._connections = [self._connected(port) for _ in range(connections)]
        self._partial = dict.fromkeys(self._connections, b"")
        self._passed = 0

    @property
    def passed(self) -> int:
        """All requests that were sent."""
        return self._passed

    def run(self, seconds: float) -> Outcome:
        """Begin again with each answer; after so long, wait for the last ones."""
        latencies: list[float] = []
        began = time.perf_counter()
        sent_at = {connection: self._send(connection) for connection in self._connections}
        while sent_at:
            for connection in self._readable():
                if not self._answered(connection):
                    continue
                now = time.perf_counter()
                latencies.append((now - sent_at.pop(connection)) * _MS)
                if now - began < seconds:
                    sent_at[connection] = self._send(connection)
        took = time.perf_counter() - began
        return Outcome(count=len(latencies), seconds=took, latencies_ms=latencies, passed=self._passed)

    def close(self) -> None:
        self._selector.close()
        for connection in self._connections:
            connection.close()

    def _connected(self, port: int) -> socket.socket:
        connection = socket.create_connection((HOST, port), timeout=SILENCE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(0)
        self._selector.register(connection, selectors.EVENT_READ, connection)
        return connection

    def _readable(self) -> list[socket.socket]:
        ready = self._selector.select(SILENCE_SECONDS)
        if not ready:
            raise WrongAnswer(f"nothing came for {SILENCE_SECONDS:g} s")
        return [key.data for key, _ in ready]

    def _send(self, connection: socket.socket) -> float:
        now, number = time.perf_counter(), next(self._numbers) * _SPREAD
        request = _HEAD + _REST % (number % _TRACES, number % _SPANS) + BODY
        if connection.send(request) != len(request):
            raise WrongAnswer("the socket did not take a whole request")
        self._passed += 1
        return now

    def _answered(self, connection: socket.socket) -> bool:
        data = connection.recv(_READ)
        if not data:
            raise WrongAnswer("the connection was closed")
        answer = self._partial[connection] + data
        length = whole_length(answer)
        if length is None or len(answer) < length:
            self._partial[connection] = answer
            return False
        require_ok(answer)
        if len(answer) > length or not answer.endswith(_ANSWER):
            raise WrongAnswer(answer.decode(errors="replace"))
        self._partial[connection] = b""
        return True
