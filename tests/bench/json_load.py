"""How fast are JSON requests answered when every connection always has one under way?"""

import time

from tests.bench.connection import (
    SILENCE_SECONDS,
    Connection,
    Group,
    WrongAnswer,
    request_bytes,
    require_ok,
    whole_length,
)
from tests.bench.job import Job, Outcome

BODY = b'{"model": "demo-small", "messages": [{"role": "user", "content": "What does a gateway cost?"}]}'
CHECKS_PER_SECOND = 400
_MS = 1000


class JsonLoad:
    expected = b'"object":"chat.completion"'

    def __init__(self, job: Job) -> None:
        self._job = job
        self._group = Group(job.port, job.ca, job.connections)
        self._request = self.request(job)
        self._partial = dict.fromkeys(self._group.connections, b"")
        self._passed = 0

    @staticmethod
    def request(job: Job) -> bytes:
        return request_bytes(job.key, BODY, {})

    def warm_up(self) -> None:
        self._run(self._job.warm_seconds)

    def measure(self) -> Outcome:
        began = time.perf_counter()
        latencies = self._run(self._job.seconds)
        seconds = time.perf_counter() - began
        return Outcome(count=len(latencies), seconds=seconds, latencies_ms=latencies, passed=self._passed)

    def close(self) -> None:
        self._group.close()

    def _run(self, seconds: float) -> list[float]:
        """Begin again with each answer; after so long, wait for the last ones."""
        latencies: list[float] = []
        stop_at = time.perf_counter() + seconds
        sent_at = {connection: self._send(connection) for connection in self._group.connections}
        while sent_at:
            for connection in self._group.readable():
                if not self._answered(connection):
                    continue
                now = time.perf_counter()
                latencies.append((now - sent_at.pop(connection)) * _MS)
                if now < stop_at:
                    sent_at[connection] = self._send(connection)
        return latencies

    def _send(self, connection: Connection) -> float:
        now = time.perf_counter()
        connection.send(self._request)
        self._passed += 1
        return now

    def _answered(self, connection: Connection) -> bool:
        answer = self._partial[connection] + connection.receive()
        length = whole_length(answer)
        if length is None or len(answer) < length:
            self._partial[connection] = answer
            return False
        require_ok(answer)
        if len(answer) > length or self.expected not in answer:
            raise WrongAnswer(answer.decode(errors="replace"))
        self._partial[connection] = b""
        return True


class CheckLoad(JsonLoad):
    """Requests that only Check decides about: no ext_proc, no limits, no row.

    They come at a fixed rate, the same for all variants: servers that are called more often do more for each wake-up,
    and a cheaper variant would look cheaper than it is.
    """

    expected = b'"object":"list"'

    @staticmethod
    def request(job: Job) -> bytes:
        lines = {"host": "localhost", "authorization": f"Bearer {job.key}"}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"GET /v1/models HTTP/1.1\r\n{head}\r\n".encode()

    def _run(self, seconds: float) -> list[float]:
        latencies: list[float] = []
        began = time.perf_counter()
        interval = len(self._group.connections) / CHECKS_PER_SECOND
        due = {one: began + at / CHECKS_PER_SECOND for at, one in enumerate(self._group.connections)}
        sent_at: dict[Connection, float] = {}
        while due or sent_at:
            for connection in [one for one, when in due.items() if when <= time.perf_counter() and one not in sent_at]:
                sent_at[connection] = self._send(connection)
                due[connection] += interval
                if due[connection] > began + seconds:
                    del due[connection]
            latencies += [
                (time.perf_counter() - sent_at.pop(connection)) * _MS
                for connection in self._group.readable(self._pause(due, sent_at))
                if self._answered(connection)
            ]
        return latencies

    @staticmethod
    def _pause(due: dict[Connection, float], sent_at: dict[Connection, float]) -> float:
        """How long to wait for answers before the next request is to be sent."""
        free = [when for one, when in due.items() if one not in sent_at]
        return max(min(free) - time.perf_counter(), 0.0) if free else SILENCE_SECONDS
