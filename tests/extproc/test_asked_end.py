"""Somebody wanted a request stopped: whose doing was its end?"""

from typing import Any

import pytest

from extproc.asked_end import as_asked
from extproc.ending import read
from extproc.lifecycle import CAUSES, STOPPING, Cause, State
from tests.support.values import admission, observation

RESET = {"details": "upstream_reset_after_response_started{protocol_error}"}
ERROR = {"status": 499, "events": 0}
WHOLE = {"input_tokens": 3, "output_tokens": 4}
LEFT = {"details": "downstream_remote_disconnect", "client_gone": True}


@pytest.mark.parametrize("asked", sorted(STOPPING))
@pytest.mark.parametrize("seen", [RESET, ERROR], ids=["reset", "error"])
def test_what_the_router_cut_off_when_it_was_asked_to_is_stopped(seen: dict[str, Any], asked: Cause) -> None:
    ending = read(observation(**seen), admission())
    found = as_asked(admission(), ending, asked)
    assert (found.state, found.cause) == (State.CANCELLED, asked)
    assert asked in CAUSES[found.state]
    assert (found.charges, found.output_tokens) == (ending.charges, ending.output_tokens)


@pytest.mark.parametrize("seen", [WHOLE, LEFT], ids=["whole", "client left"])
def test_what_ended_otherwise_is_what_it_was(seen: dict[str, Any]) -> None:
    ending = read(observation(**seen), admission())
    assert as_asked(admission(), ending, Cause.CLIENT_CANCEL) == ending


def test_a_json_answer_that_came_whole_is_complete_though_nobody_said_its_usage() -> None:
    of_json = admission(stream=False)
    ending = read(observation(events=0), of_json)
    assert ending.cause is Cause.FINISHED
    assert as_asked(of_json, ending, Cause.CLIENT_CANCEL) == ending


@pytest.mark.parametrize("seen", [RESET, ERROR, WHOLE, LEFT])
def test_without_a_wish_nothing_is_changed(seen: dict[str, Any]) -> None:
    ending = read(observation(**seen), admission())
    assert as_asked(admission(), ending, None) is ending
