"""What do many slow streams cost, and how soon does the Router learn that a client has left?

Streams begin one after the other, so that their events do not all come in the same millisecond.
"""

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from tests.bench.connection import (
    HOST,
    SILENCE_SECONDS,
    Connection,
    Group,
    WrongAnswer,
    request_bytes,
    request_id,
    require_ok,
)
from tests.bench.job import Job, Outcome

BODY = b'{"model": "demo-small", "stream": true, "messages": [{"role": "user", "content": "What does a stream cost?"}]}'
# No multiple of the events' interval.
SPACING_SECONDS = 0.0127
# Long enough for some events, and much shorter than the stream.
STAY_SECONDS = 0.5
WARM_EVENTS = 10
NOTICED_SECONDS = 10.0
_MS = 1000
_MARK, _DONE, _END = b"data: ", b"data: [DONE]\n\n", b"\r\n0\r\n\r\n"
_TAIL = 64


class StreamReader:
    """One streamed answer as it comes."""

    def __init__(self) -> None:
        self.events = 0
        self.request_id = ""
        self.first_at = 0.0
        self._text = b""

    def feed(self, data: bytes) -> bool:
        """Take what came; whether the answer has ended, as it should."""
        # A mark may be cut in two; its first part alone is none, so nothing is counted twice.
        self.events += (self._text[1 - len(_MARK) :] + data).count(_MARK)
        self._text += data
        if self.events and not self.first_at:
            self.first_at = time.time()
        if not self.request_id and b"\r\n\r\n" in self._text:
            require_ok(self._text)
            self.request_id = request_id(self._text)
        if self.request_id:
            self._text = self._text[-_TAIL:]
        if not self._text.endswith(_END):
            return False
        if _DONE not in self._text:
            raise WrongAnswer(f"a stream ended without [DONE]: {self._text.decode(errors='replace')}")
        return True


_Running = dict[Connection, StreamReader]


class Sightings:
    """What the Router saw of the streams."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=NOTICED_SECONDS)

    def of(self, request_id: str) -> dict[str, Any]:
        """What it saw of a request that has ended, or will have in a moment."""
        deadline = time.monotonic() + NOTICED_SECONDS
        while time.monotonic() < deadline:
            self._connection.request("GET", f"/demo/seen/{request_id}")
            seen: dict[str, Any] = json.loads(self._connection.getresponse().read())
            if seen["end"] != "running":
                return seen
            time.sleep(0.05)
        raise WrongAnswer(f"the Router still writes to {request_id}")


class StreamLoad:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._group = Group(job.port, job.ca, job.connections)
        self._passed = 0

    def warm_up(self) -> None:
        self._play(WARM_EVENTS)

    def measure(self) -> Outcome:
        began = time.perf_counter()
        readers = self._play(self._job.events)
        seconds = time.perf_counter() - began
        sightings = Sightings(self._job.router_port)
        delays = [(one.first_at - sightings.of(one.request_id)["first_event_at"]) * _MS for one in readers]
        count = sum(reader.events for reader in readers)
        return Outcome(count=count, seconds=seconds, latencies_ms=delays, passed=self._passed)

    def close(self) -> None:
        self._group.close()

    def _play(self, events: int) -> list[StreamReader]:
        """One stream on every connection, from its first event to its end."""
        readers = self._follow(self._request(events), lambda _: None)
        for reader in readers:
            if reader.events != events + 1:  # [DONE] is one, too
                raise WrongAnswer(f"{reader.events} events came instead of {events + 1}")
        return readers

    def _request(self, events: int) -> bytes:
        self._passed += len(self._group.connections)
        steering = {"x-demo-events": str(events), "x-demo-interval-ms": f"{self._job.interval_ms:g}"}
        return request_bytes(self._job.key, BODY, steering)

    def _follow(self, request: bytes, after_wait: Callable[[_Running], None]) -> list[StreamReader]:
        """Begin a stream on each connection, one after the other, and read them until none runs."""
        waiting, readers = list(self._group.connections), []
        running: _Running = {}
        next_start = time.monotonic()
        while waiting or running:
            if waiting and time.monotonic() >= next_start:
                connection = waiting.pop()
                connection.send(request)
                readers.append(running.setdefault(connection, StreamReader()))
                next_start += SPACING_SECONDS
            pause = max(0.0, next_start - time.monotonic()) if waiting else SILENCE_SECONDS
            for connection in self._group.readable(pause):
                data = connection.receive()
                # Before its stream begins, a connection is readable for what TLS has to say.
                if data and running[connection].feed(data):
                    del running[connection]
            after_wait(running)
        return readers


class DisconnectLoad(StreamLoad):
    """Streams whose clients leave in the middle."""

    def measure(self) -> Outcome:
        began = time.perf_counter()
        left: dict[str, float] = {}
        seen_since: dict[Connection, float] = {}

        def leave(running: _Running) -> None:
            now = time.monotonic()
            for connection in list(running):
                if now - seen_since.setdefault(connection, now) > STAY_SECONDS:
                    reader = running.pop(connection)
                    if not reader.events:
                        raise WrongAnswer("a stream had no event when its client was to leave")
                    left[reader.request_id] = time.time()
                    self._group.leave(connection)

        self._follow(self._request(self._job.events), leave)
        sightings = Sightings(self._job.router_port)
        delays = [self._noticed(sightings.of(one), closed_at) for one, closed_at in left.items()]
        seconds = time.perf_counter() - began
        return Outcome(count=len(delays), seconds=seconds, latencies_ms=delays, passed=self._passed)

    @staticmethod
    def _noticed(seen: dict[str, Any], closed_at: float) -> float:
        if seen["end"] != "client_closed":
            raise WrongAnswer(f"a stream whose client left has ended otherwise: {seen['end']}")
        return float(seen["ended_at"] - closed_at) * _MS
