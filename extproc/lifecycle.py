"""Which states can a request be in, and what may follow what? The one table of the lifecycle.

    RECEIVED → ADMITTED → DISPATCHED → STREAMING → COMPLETED | FAILED | CANCELLED | TIMED_OUT
    RECEIVED → REJECTED

The gateway acts at two moments, when a request is admitted and when it has ended; what lies between is Envoy's, and
is told apart by the times in the record.
"""

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
    UPSTREAM_ERROR = "upstream_error"  # the Router answered with an error status
    UPSTREAM_RESET = "upstream_reset"  # the Router broke the connection, or could not be reached
    UPSTREAM_TIMEOUT = "upstream_timeout"
    DEADLINE = "deadline"
    GATEWAY_ERROR = "gateway_error"  # admitted, but the gateway itself could not let it pass
    GATEWAY_LOST = "gateway_lost"  # nobody could tell how it ended


FINAL = frozenset({State.REJECTED, State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT})

_ENDS = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT})
TRANSITIONS: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.ADMITTED, State.REJECTED}),
    State.ADMITTED: _ENDS | {State.DISPATCHED},
    State.DISPATCHED: _ENDS | {State.STREAMING},
    State.STREAMING: _ENDS,
    **dict.fromkeys(FINAL, frozenset()),
}


def may_follow(current: State, following: State) -> bool:
    """Whether the lifecycle allows this step."""
    return following in TRANSITIONS[current]
