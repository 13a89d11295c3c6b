"""What does docs/lifecycle.md say? The states, what may follow what, and why a request ends, from the one table."""

from collections.abc import Iterable

from extproc.lifecycle import CAUSES, FINAL, TRANSITIONS, Cause, State
from tests.docs.page import page, table

MEANINGS = {
    State.RECEIVED: "Envoy has it; nobody has decided yet",
    State.REJECTED: "refused: it takes no room, has no row, and never reaches the Router",
    State.ADMITTED: "room is taken under every limit; it may go to the Router",
    State.DISPATCHED: "it has gone to the Router",
    State.STREAMING: "the answer passes",
    State.COMPLETED: "the Router answered with 2xx, and its whole answer has passed",
    State.FAILED: "the Router or the gateway failed it",
    State.CANCELLED: "it was stopped before its end: its client left, or somebody who may had it stopped",
    State.TIMED_OUT: "it took too long",
}
REASONS = {
    Cause.FINISHED: "the answer came to its end",
    Cause.CLIENT_DISCONNECT: "the client closed its connection or reset its stream",
    Cause.CLIENT_CANCEL: "its tenant cancelled it by its id ([cancel.md](cancel.md))",
    Cause.ADMIN_CANCEL: "an operator cancelled it",
    Cause.REVOKED: "its credential, principal, tenant or organization may not go on (`GATEWAY_END_REVOKED_STREAMS`)",
    Cause.OUTPUT_LIMIT: "it wrote more than its plan lets one request write",
    Cause.UPSTREAM_ERROR: "the Router answered with another status than 2xx, or ended its stream as failed",
    Cause.UPSTREAM_RESET: "the Router broke the connection, or could not be reached",
    Cause.UPSTREAM_TIMEOUT: "the Router was silent for too long",
    Cause.DEADLINE: "it ran for longer than its plan lets one request run",
    Cause.GATEWAY_ERROR: "admitted, but the gateway itself could not let it pass",
    Cause.GATEWAY_LOST: (
        "its worker died while its answer passed through it, which is charged by what had passed; or nobody could tell "
        "how it ended, and it is charged by what was reserved, or by the events seen"
    ),
    Cause.IDENTITY: "who is calling is not known, or may not do this",
    Cause.VALIDATION: "the request is not valid",
    Cause.IDEMPOTENCY: "its idempotency key says that it was made before ([idempotency.md](idempotency.md))",
    Cause.QUOTA: "a limit has no room",
    Cause.OVERLOAD: "the Router is overloaded, and the plan has to wait",
    Cause.OUTAGE: "what decides could not be asked",
}


def lifecycle() -> str:
    """States, transitions and causes."""
    states = [
        (f"`{state}`", "final" if state in FINAL else "", MEANINGS[state], _inline(TRANSITIONS[state]))
        for state in State
    ]
    causes = [
        (f"`{cause}`", _inline(state for state, those in CAUSES.items() if cause in those), REASONS[cause])
        for cause in Cause
    ]
    return page(
        "The life of a request",
        _diagram(),
        table(("state", "", "means", "may be followed by"), states),
        "A request is seen when it is admitted, in Envoy's reports of what runs, each 5 seconds, and when it has "
        "ended: a short one goes from `admitted` to its end at once. The script in Redis that takes a step is handed "
        "the states that it may follow: a step from any other changes nothing. Each step is an event "
        "([events.md](events.md)).",
        "A row of the ledger holds a final state and its cause. A request that was rejected has none:",
        table(("cause", "of", "means"), causes),
    )


def _diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.RECEIVED}"]
    lines += [f"    {state} --> {following}" for state in State for following in _ordered(TRANSITIONS[state])]
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join([*lines, "```"])


def _ordered(states: Iterable[State]) -> list[State]:
    return sorted(states, key=list(State).index)


def _inline(states: Iterable[State]) -> str:
    return ", ".join(f"`{state}`" for state in _ordered(states))
