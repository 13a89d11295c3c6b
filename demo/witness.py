"""What did the Router see of a request? The bounded memory behind `/demo/seen` and `/demo/totals`."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_SIGHTINGS = 20_000
MAX_BODY = 64 * 1024
MAX_HELD = 128 * 1024 * 1024


class End(StrEnum):
    """How a request stands, or how it ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    CLIENT_CLOSED = "client_closed"
    FAULT = "fault"
    CANCELLED = "cancelled"


# Not frozen: it is written to while the request runs, once per event, and read by nobody but the witness.
@dataclass(slots=True, kw_only=True, eq=False)
class Sighting:
    """One request, as it was received and as far as it got; `stops` is how often somebody asked to end it."""

    method: str
    path: str
    raw_headers: tuple[tuple[bytes, bytes], ...]
    received_at: float
    attempt: int
    task: asyncio.Task[Any] | None
    body: bytes = b""
    body_bytes: int = 0
    first_event_at: float | None = None
    ended_at: float | None = None
    events_written: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    end: End = End.RUNNING
    stops: int = 0


@dataclass(slots=True)
class _Sums:
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    live: int = 0
    ended: dict[End, int] = field(default_factory=lambda: dict.fromkeys(End, 0))


class Witness:
    """Remembers the newest requests by their id, and the sums of all of them."""

    def __init__(self, now: Callable[[], float], *, keep: int = MAX_SIGHTINGS, held_bytes: int = MAX_HELD) -> None:
        self.now = now
        self._keep = keep
        self._held_limit = held_bytes
        self._held = 0
        self._sightings: OrderedDict[str, Sighting] = OrderedDict()
        self._sums = _Sums()

    def begin(self, request_id: str | None, method: str, path: str, headers: Any) -> Sighting:
        """Start to watch a request; one that bears a known id is another attempt and takes its place."""
        before = self._forget(request_id) if request_id in self._sightings else None
        sighting = Sighting(
            method=method,
            path=path,
            raw_headers=headers,
            received_at=self.now(),
            attempt=before.attempt + 1 if before else 1,
            task=asyncio.current_task(),
        )
        self._sums.requests += 1
        self._sums.live += 1
        if request_id is not None:
            self._sightings[request_id] = sighting
            if len(self._sightings) > self._keep:
                self._forget(next(iter(self._sightings)))
        return sighting

    def took_body(self, request_id: str | None, sighting: Sighting, body: bytes) -> None:
        """Remember the head of a body, at the cost of the oldest sightings when memory is short."""
        sighting.body, sighting.body_bytes = body[:MAX_BODY], len(body)
        if request_id is None or self._sightings.get(request_id) is not sighting:
            sighting.body = b""
            return
        self._held += len(sighting.body)
        while self._held > self._held_limit and len(self._sightings) > 1:
            self._forget(next(iter(self._sightings)))

    def ended(self, sighting: Sighting, end: End) -> None:
        """Note how a request ended; the first end told is the true one."""
        if sighting.end is not End.RUNNING:
            return
        sighting.end, sighting.ended_at, sighting.task = end, self.now(), None
        sums = self._sums
        sums.live -= 1
        sums.ended[end] += 1
        sums.tokens_in += sighting.tokens_in
        sums.tokens_out += sighting.tokens_out

    def cancel(self, request_id: str) -> bool:
        """End a running request from outside; False when there is none of that id."""
        sighting = self._sightings.get(request_id)
        if sighting is None:
            return False
        sighting.stops += 1
        if sighting.task is None:
            return False
        task = sighting.task
        self.ended(sighting, End.CANCELLED)
        task.cancel()
        return True

    def seen(self, request_id: str) -> dict[str, Any] | None:
        """Tell what is known of a request."""
        sighting = self._sightings.get(request_id)
        return None if sighting is None else _as_json(sighting)

    def totals(self) -> dict[str, int]:
        """Tell the sums since the start; every request is live or has ended one way."""
        sums = self._sums
        return {
            "requests": sums.requests,
            "completed": sums.ended[End.COMPLETED],
            "client_closed": sums.ended[End.CLIENT_CLOSED],
            "faults": sums.ended[End.FAULT],
            "cancelled": sums.ended[End.CANCELLED],
            "tokens_in": sums.tokens_in,
            "tokens_out": sums.tokens_out,
            "live": sums.live,
        }

    def _forget(self, request_id: str | None) -> Sighting:
        sighting = self._sightings.pop(str(request_id))
        self._held -= len(sighting.body)
        return sighting


def _as_json(sighting: Sighting) -> dict[str, Any]:
    return {
        "method": sighting.method,
        "path": sighting.path,
        "headers": [[name.decode("latin-1").lower(), _text(value)] for name, value in sighting.raw_headers],
        "body": _text(sighting.body),
        "body_bytes": sighting.body_bytes,
        "attempt": sighting.attempt,
        "received_at": sighting.received_at,
        "first_event_at": sighting.first_event_at,
        "ended_at": sighting.ended_at,
        "events_written": sighting.events_written,
        "tokens_in": sighting.tokens_in,
        "tokens_out": sighting.tokens_out,
        "end": sighting.end,
        "stops": sighting.stops,
    }


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
