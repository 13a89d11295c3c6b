"""The table of the lifecycle, every pair of it, against the picture at its head."""

from itertools import pairwise, product

import pytest

from extproc.lifecycle import FINAL, TRANSITIONS, State, may_follow

ENDS = {State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT}
MAIN = (State.RECEIVED, State.ADMITTED, State.DISPATCHED, State.STREAMING)
# RECEIVED -> ADMITTED -> DISPATCHED -> STREAMING, an end from anywhere after the admission, or REJECTED at once.
ALLOWED = {
    *pairwise(MAIN),
    *product(MAIN[1:], ENDS),
    (State.RECEIVED, State.REJECTED),
}


@pytest.mark.parametrize(("current", "following"), list(product(State, State)))
def test_exactly_the_steps_of_the_picture_are_allowed(current: State, following: State) -> None:
    assert may_follow(current, following) is ((current, following) in ALLOWED)


def test_every_state_has_its_row_and_the_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, following in TRANSITIONS.items() if not following} == FINAL == ENDS | {State.REJECTED}


def test_every_state_is_reached_and_every_life_ends() -> None:
    reached, waiting = set(), [State.RECEIVED]
    while waiting:
        state = waiting.pop()
        reached.add(state)
        waiting += TRANSITIONS[state] - reached
    assert reached == set(State)
    assert all(TRANSITIONS[state] & FINAL for state in set(State) - FINAL)
