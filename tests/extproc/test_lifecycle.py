"""The table of the lifecycle, every pair of it, against the picture at its head."""

from itertools import pairwise, product

import pytest

from extproc.lifecycle import (
    CAUSES,
    FINAL,
    LIVE,
    STOPPING,
    TRANSITIONS,
    Cause,
    Impossible,
    State,
    Step,
    follow,
    predecessors,
)

ENDS = {State.COMPLETED, State.FAILED, State.CANCELLED, State.TIMED_OUT}
MAIN = (State.RECEIVED, State.ADMITTED, State.DISPATCHED, State.STREAMING)
# RECEIVED -> ADMITTED -> DISPATCHED -> STREAMING, an end from anywhere after the admission, or REJECTED at once.
ALLOWED = {
    *pairwise(MAIN),
    (State.ADMITTED, State.STREAMING),  # a step that passed before anybody looked
    *product(MAIN[1:], ENDS),
    (State.RECEIVED, State.REJECTED),
}


@pytest.mark.parametrize(("current", "following"), list(product(State, State)))
def test_exactly_the_steps_of_the_picture_are_taken_each_with_a_cause_of_its_own(
    current: State, following: State
) -> None:
    for cause in (None, *Cause):
        before, after = Step(current, 1), Step(following, 2, cause)
        allowed = (current, following) in ALLOWED and cause in CAUSES.get(following, {None})
        assert follow(before, after) == (after if allowed else Impossible(before, after))


@pytest.mark.parametrize("state", State)
def test_the_predecessors_of_a_state_are_those_of_the_picture(state: State) -> None:
    before = predecessors(state)
    assert set(before) == {current for current, following in ALLOWED if following is state}
    assert list(before) == [each for each in State if each in before]


def test_every_end_has_causes_and_no_cause_belongs_to_two() -> None:
    assert set(CAUSES) == FINAL
    belonging = [cause for causes in CAUSES.values() for cause in causes]
    assert sorted(belonging) == sorted(Cause)
    assert CAUSES[State.CANCELLED] > STOPPING


def test_every_state_has_its_row_and_the_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {state for state, following in TRANSITIONS.items() if not following} == FINAL == ENDS | {State.REJECTED}
    assert set(State) - FINAL - {State.RECEIVED} == LIVE


def test_every_state_is_reached_and_every_life_ends() -> None:
    reached, waiting = set(), [State.RECEIVED]
    while waiting:
        state = waiting.pop()
        reached.add(state)
        waiting += TRANSITIONS[state] - reached
    assert reached == set(State)
    assert all(TRANSITIONS[state] & FINAL for state in set(State) - FINAL)
