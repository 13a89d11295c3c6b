"""Which states can a request be in, why does it end, and what may follow what? The one table of the lifecycle.

    RECEIVED → ADMITTED → DISPATCHED → STREAMING → COMPLETED | FAILED | CANCELLED | TIMED_OUT
    RECEIVED → REJECTED

Whoever writes a state into Redis hands the states that it may follow along with it (`predecessors`), so that the
scripts enforce this table and have none of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a request is in its life."""

    RECEIVED = "received"
    REJECTED = "rejected"
    ADMITTED = "admitted"
    DISPATCHED = "dispatched"
    STREAMING = "streaming"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class Cause(StrEnum):
    """Why a request ended as it did."""

    FINISHED = "finished"
    CLIENT_DISCONNECT = "client_disconnect"
    CLIENT_CANCEL = "client_cancel"  # its tenant cancelled it by its id
    ADMIN_CANCEL = "admin_cancel"  # an operator did
    REVOKED = "revoked"  # its credential, tenant or organization may not go on
    OUTPUT_LIMIT = "output_limit"  # it wrote more than its plan lets one request write
    UPSTREAM_ERROR = "upstream_error"  # the Router answered with an error status
    UPSTREAM_RESET = "upstream_reset"  # the Router broke the connection, or could not be reached
    UPSTREAM_TIMEOUT = "upstream_timeout"
    DEADLINE = "deadline"  # it ran for longer than its plan lets one request run
    GATEWAY_ERROR = "gateway_error"  # admitted, but the gateway itself could not let it pass
    GATEWAY_LOST = "gateway_lost"  # its worker died under its answer, or nobody could tell how it ended
    IDENTITY = "identity"  # these and below: why it was rejected
    VALIDATION = "validation"
    IDEMPOTENCY = "idempotency"
    QUOTA = "quota"
    OVERLOAD = "overload"
    OUTAGE = "outage"


_ENDS = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT})
FINAL = _ENDS | {State.REJECTED}
LIVE = frozenset({State.ADMITTED, State.DISPATCHED, State.STREAMING})

# A short request is seen twice, when it is admitted and when it has ended: every live state may be the last one seen.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.ADMITTED, State.REJECTED}),
    State.ADMITTED: _ENDS | {State.DISPATCHED, State.STREAMING},
    State.DISPATCHED: _ENDS | {State.STREAMING},
    State.STREAMING: _ENDS,
    **dict.fromkeys(FINAL, frozenset()),
}
CAUSES: Mapping[State, frozenset[Cause]] = {
    State.REJECTED: frozenset(
        {Cause.IDENTITY, Cause.VALIDATION, Cause.IDEMPOTENCY, Cause.QUOTA, Cause.OVERLOAD, Cause.OUTAGE}
    ),
    State.COMPLETED: frozenset({Cause.FINISHED}),
    State.FAILED: frozenset({Cause.UPSTREAM_ERROR, Cause.UPSTREAM_RESET, Cause.GATEWAY_ERROR, Cause.GATEWAY_LOST}),
    State.CANCELLED: frozenset(
        {Cause.CLIENT_DISCONNECT, Cause.CLIENT_CANCEL, Cause.ADMIN_CANCEL, Cause.REVOKED, Cause.OUTPUT_LIMIT}
    ),
    State.TIMED_OUT: frozenset({Cause.UPSTREAM_TIMEOUT, Cause.DEADLINE}),
}
"""Why a request can have ended in each final state; the others have no cause."""
STOPPING = frozenset({Cause.CLIENT_CANCEL, Cause.ADMIN_CANCEL, Cause.REVOKED, Cause.OUTPUT_LIMIT})
"""Why the gateway itself stops a request that runs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A state that a request is in, since `at_ms` (epoch), with the cause when it is final."""

    state: State
    at_ms: int
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Impossible:
    """A step that the table does not allow; nothing has changed."""

    current: Step
    following: Step


def follow(current: Step, following: Step) -> Step | Impossible:
    """The step after this one, or why it cannot be taken."""
    causes = CAUSES.get(following.state, frozenset({None}))
    if following.state in TRANSITIONS[current.state] and following.cause in causes:
        return following
    return Impossible(current, following)


def predecessors(state: State) -> tuple[State, ...]:
    """The states that this one may follow, in the order of a life."""
    return tuple(before for before in State if state in TRANSITIONS[before])
