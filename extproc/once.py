"""How is a request with an idempotency key made once, however often it comes?

The key is claimed before room is taken, in a store that outlives every process; whoever finds it taken learns what
became of the request that holds it.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from authz.refusal import Refusal
from extproc import ending as endings
from extproc import idempotency
from extproc.admitter import Admitted, Admitter, Candidate
from extproc.idempotency import Answer, Earlier, IdempotencyKeys, IdempotencyOutage, KeyedRequest, Next, Replay
from extproc.lifecycle import State
from extproc.recorded_answer import RecordedAnswer
from quota.reservation import Known, QuotaOutage

# Together with what the limits may take, less than Envoy waits for an answer (envoy/envoy.yaml, message_timeout).
DEADLINE_SECONDS = 1.0
# The last piece of an answer waits for so long until the answer is safe.
RECORD_SECONDS = 0.5
_ATTEMPTS = 4


class Finds(Protocol):
    """Knows the requests that run, such as `quota.reservation.Reservations`."""

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        """The request, open or settled a short while ago; `QuotaOutage` when that cannot be asked."""


class Recording:
    """Keeps the answer of a keyed request, before its last piece is let go."""

    def __init__(self, once: "Once", request: KeyedRequest) -> None:
        self._once = once
        self._request = request
        self.answer = RecordedAnswer()

    async def see(self, phase: str | None, message: Any) -> None:
        """Take note of a part of the response, which may go on afterwards."""
        self.answer.see(phase, message)
        whole, self.answer.whole = self.answer.whole, None
        if whole is not None:
            await self._once.record(self._request, whole)


class Once:
    """Admits requests, those with a key once. `pepper` keys the fingerprints."""

    def __init__(self, admitter: Admitter, keys: IdempotencyKeys, requests: Finds, *, pepper: bytes) -> None:
        self._admitter = admitter
        self._keys = keys
        self._requests = requests
        self._pepper = pepper
        self._running: set[asyncio.Task[Any]] = set()

    def keyed(self, candidate: Candidate, body: bytes) -> KeyedRequest | None:
        """The request under its key, None when it has none; `body` is the client's own."""
        return idempotency.keyed(candidate.grant, candidate.arrival, body, pepper=self._pepper)

    async def admit(self, candidate: Candidate, request: KeyedRequest | None) -> Admitted | Refusal | Replay:
        """Take room for the request, unless it was made before; a key is kept by an admitted request alone."""
        if request is None:
            return await self._admitter.admit(candidate)
        earlier = await self._earlier(candidate.grant.organization_id, request)
        if earlier is not None:
            return earlier
        try:
            outcome = await self._admitter.admit(candidate)
        except BaseException:
            self._start(self._keys.free(request))
            raise
        if isinstance(outcome, Refusal):
            await self._within(DEADLINE_SECONDS, self._keys.free(request))
        else:
            self._start(self._keys.admitted(request))  # not waited for: it counts when all else has been lost
        return outcome

    async def record(self, request: KeyedRequest, answer: Answer) -> None:
        """Keep an answer for retries. If that fails, or takes too long, they are told where else to look."""
        await self._within(RECORD_SECONDS, self._keys.record(request, answer))

    async def finish(self) -> None:
        """Wait for what has been started."""
        while self._running:
            await asyncio.wait(self._running)

    async def _earlier(self, organization_id: str, request: KeyedRequest) -> Replay | Refusal | None:
        """What an earlier request means for this one; None when this one holds the key."""
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await self._claim(organization_id, request)
        except (IdempotencyOutage, QuotaOutage, TimeoutError):
            self._start(self._keys.free(request))  # it may have been claimed all the same
            return idempotency.unavailable()
        except asyncio.CancelledError:
            self._start(self._keys.free(request))
            raise

    async def _claim(self, organization_id: str, request: KeyedRequest) -> Replay | Refusal | None:
        completed = ""
        earlier: Earlier | None = None
        for _ in range(_ATTEMPTS):
            earlier = await self._keys.claim(request)
            if earlier is None:
                return None
            found = idempotency.at_once(request, earlier)
            if found is Next.ASK_STATE:
                state = await self._state(organization_id, earlier.request_id)
                found = idempotency.by_state(earlier, state, read_since=completed == earlier.request_id)
            if found is Next.TAKE_OVER and await self._keys.take_over(request, earlier.request_id):
                return None
            if not isinstance(found, Next):
                return found
            completed = earlier.request_id if found is Next.READ_AGAIN else ""
        return None if earlier is None else idempotency.in_use(earlier)

    async def _state(self, organization_id: str, request_id: str) -> State | None:
        """What became of a request. The ledger has it before the store of those that run forgets it."""
        known = await self._requests.find(organization_id, request_id)
        if known is None:
            return await self._keys.ended(request_id)
        return State.ADMITTED if known.ending is None else endings.decode(known.ending).state

    async def _within(self, seconds: float, work: Coroutine[Any, Any, object]) -> None:
        """Wait for the work for so long at most; it goes on behind."""
        await asyncio.wait({self._start(work)}, timeout=seconds)

    def _start(self, work: Coroutine[Any, Any, object]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(_to_its_end(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task


async def _to_its_end(work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except IdempotencyOutage:
        return  # a claim without a request is given up by its age, an answer that was not kept is elsewhere
