"""Was this request made before, under the same idempotency key, and what does its client get then? Pure decisions.

https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07, section 2.6: a retry of a request
that has ended gets its result, one of a request that runs 409; another request under the same key gets 422.
"""

import hmac
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from authz import idempotency_key
from authz.arrival import Arrival
from authz.derived_key import derived_key
from authz.grant import Grant
from authz.refusal import Reason, Refusal
from extproc.lifecycle import LIVE, State

MAX_ANSWER_BYTES = 256 * 1024
# A worker that was killed after it had claimed a key, and before it took room, leaves a claim without a request. It
# would have taken room, or been refused by Envoy, within 2 s (envoy/envoy.yaml, message_timeout).
ABANDONED_AFTER_MS = 30_000
_FINGERPRINT_LABEL = "idempotency fingerprint"
_RETRY_AFTER_MS = 1000
_NO_RETRY = ("x-should-retry", "false")  # OpenAI's SDKs try a 409 again, unless they are told not to


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer of the Router, as it was recorded."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedRequest:
    """A request that carries an idempotency key. The key is its principal's own; nobody else's means the same.

    `fingerprint` is a keyed hash of what was asked.
    """

    tenant_id: str
    principal_id: str
    key: str
    request_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The request that holds a key. `age_ms` is how long it has, `answer` what was recorded of it, if anything.

    `admitted` says that it took room: then it runs or will be in the ledger, whoever has forgotten it meanwhile.
    """

    request_id: str
    fingerprint: bytes
    age_ms: int
    admitted: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The recorded answer of an earlier request is to be given again."""

    request_id: str
    answer: Answer


class Next(Enum):
    """What is to be done when there is no answer yet."""

    ASK_STATE = auto()  # what became of the earlier request must be known
    READ_AGAIN = auto()  # it has ended since it was read: its answer may be there now
    TAKE_OVER = auto()  # nothing of the earlier request can be given: the key passes to this one


class IdempotencyOutage(Exception):
    """Whether a request was made before cannot be told now. Whether a pending call took effect is unknown."""


class IdempotencyKeys(Protocol):
    """Remembers which request holds a key. Durable, and every method atomic; each raises `IdempotencyOutage`."""

    async def claim(self, request: KeyedRequest) -> Earlier | None:
        """Take the key; None when the request holds it now, otherwise who does."""

    async def take_over(self, request: KeyedRequest, earlier: str) -> bool:
        """Take the key from the request of this id; False when it no longer holds it, or its answer was recorded."""

    async def admitted(self, request: KeyedRequest) -> None:
        """Note that the request took room."""

    async def free(self, request: KeyedRequest) -> None:
        """Give the key back, if the request holds it and has no answer."""

    async def record(self, request: KeyedRequest, answer: Answer) -> bool:
        """Keep the request's answer; False when it no longer holds the key."""

    async def ended(self, request_id: str) -> State | None:
        """The state in which a request is in the ledger; None when it is not there."""


def keyed(grant: Grant, arrival: Arrival, body: bytes, *, pepper: bytes) -> KeyedRequest | None:
    """The request under its key; None when it has none. `body` is the client's own, to the byte."""
    if not arrival.idempotency_key:
        return None
    # A path holds no line break, so no other path and body make the same text.
    text = b"%s\n%s" % (arrival.path.encode(), body)
    return KeyedRequest(
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        key=arrival.idempotency_key,
        request_id=arrival.request_id,
        fingerprint=hmac.digest(derived_key(pepper, _FINGERPRINT_LABEL), text, "sha256"),
    )


def at_once(request: KeyedRequest, earlier: Earlier) -> Replay | Refusal | Next:
    """What is known without asking what became of the earlier request."""
    if not hmac.compare_digest(request.fingerprint, earlier.fingerprint):
        return _refusal(Reason.IDEMPOTENCY_KEY_REUSED, earlier)
    if earlier.answer is not None:
        # Whatever else became of it: its client may have left with the last byte on the way.
        return Replay(request_id=earlier.request_id, answer=earlier.answer)
    return Next.ASK_STATE


def by_state(earlier: Earlier, state: State | None, *, read_since: bool) -> Refusal | Next:
    """What is to be done, by the state of the earlier request; None when nothing is known of it.

    `read_since` says whether `earlier` was read after it was known to have completed.
    """
    if state is None:
        abandoned = not earlier.admitted and earlier.age_ms > ABANDONED_AFTER_MS
        return Next.TAKE_OVER if abandoned else in_use(earlier)
    if state in LIVE or state is State.RECEIVED:
        return in_use(earlier)
    if state is not State.COMPLETED:
        return Next.TAKE_OVER
    return _elsewhere(earlier) if read_since else Next.READ_AGAIN


def in_use(earlier: Earlier) -> Refusal:
    """The earlier request still runs, or another retry was faster."""
    return _refusal(Reason.IDEMPOTENCY_KEY_IN_USE, earlier)


def unavailable() -> Refusal:
    """Nobody knows whether the request was made before: making it twice would be worse than refusing it."""
    return Refusal(reason=Reason.IDEMPOTENCY_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)


def _elsewhere(earlier: Earlier) -> Refusal:
    url = f"/v1/requests/{earlier.request_id}"
    return Refusal(
        reason=Reason.IDEMPOTENT_RESULT_ELSEWHERE,
        param=idempotency_key.HEADER,
        details={"request_id": earlier.request_id, "url": url},
        headers=(_NO_RETRY, ("location", url)),
    )


def _refusal(reason: Reason, earlier: Earlier) -> Refusal:
    return Refusal(
        reason=reason,
        param=idempotency_key.HEADER,
        details={"request_id": earlier.request_id},
        headers=(_NO_RETRY,),
    )
