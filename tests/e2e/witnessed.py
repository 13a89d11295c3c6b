"""How may a request have ended, by what its client saw and did, and by what the Router saw?

The two are witnesses who do not know of each other. Where both leave room for two ends, the reason is a race that
neither of them can see; everywhere else there is one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

End = tuple[str, str] | None
"""State and cause of a row; None when there is none."""

FINISHED: End = ("completed", "finished")
UPSTREAM_ERROR: End = ("failed", "upstream_error")
UPSTREAM_RESET: End = ("failed", "upstream_reset")
GATEWAY_ERROR: End = ("failed", "gateway_error")
CLIENT_GONE: End = ("cancelled", "client_disconnect")
CLIENT_CANCEL: End = ("cancelled", "client_cancel")
OUTPUT_LIMIT: End = ("cancelled", "output_limit")
DEADLINE: End = ("timed_out", "deadline")

_OUR_ERRORS = {"deadline_exceeded": DEADLINE, "output_limit_reached": OUTPUT_LIMIT, "request_cancelled": CLIENT_CANCEL}
_ON_ITS_WAY = {"completed": (FINISHED,), "fault": (UPSTREAM_RESET,)}
_NOTHING: frozenset[End] = frozenset()


class Wish(StrEnum):
    """The end that was asked for. What came of it is another matter."""

    DONE = "done"
    LEFT = "the client leaves"
    CANCELLED = "cancelled by its id"
    SAID_NO = "the Router says no"
    BROKEN_BEFORE = "the Router breaks before headers"
    BROKEN_IN_MIDST = "the Router breaks off"
    LATE = "later than the deadline"
    TOO_MUCH = "more than the plan lets it write"
    RETRIED = "retried at once with a key"
    REFUSED = "refused"


@dataclass(slots=True, kw_only=True)
class Note:
    """What the client of one request saw and did.

    `model` tells the request apart where its client never learnt its id. `bound` is how its plan may end it.
    """

    wish: Wish
    model: str
    bound: End = None
    status: int = 0
    request_id: str = ""
    whole: bool = False
    """Whether all of a good answer came."""
    broken: str = ""
    """How it broke off, if it did."""
    replayed: bool = False
    code: str = ""
    """Of the error that came, as an answer or in a stream."""
    left: bool = False
    cancel: int = 0
    """What the call that cancelled it was answered; 0 when it had ended before."""
    told: End = None
    """How it had ended, as that call was told."""


def expected(note: Note, seen: Mapping[str, Any] | None) -> frozenset[End]:
    """How the request's row may say that it ended; nothing when the witnesses contradict each other.

    `seen` is the Router's sighting, None when the request never came to it.
    """
    if seen is None:
        return _never_sent(note)
    by_itself = _by_itself(note, seen["end"])
    if note.cancel == HTTPStatus.OK:
        # All of an answer may be out a moment before Envoy knows that it was all.
        return _NOTHING if note.whole and seen["end"] != "completed" else frozenset({CLIENT_CANCEL})
    if note.cancel == HTTPStatus.ACCEPTED:  # marked, and not ended within a second: the natural end may come first
        return by_itself | {CLIENT_CANCEL}
    return by_itself if note.told is None else by_itself & {note.told}


def _never_sent(note: Note) -> frozenset[End]:
    if note.left and not note.status:  # before it was admitted, or between that and its dispatch
        return frozenset({None, CLIENT_GONE})
    if note.code == "gateway_unavailable":  # nobody knows whether room was taken when its answer did not come in time
        return frozenset({None, GATEWAY_ERROR})
    if note.cancel == HTTPStatus.OK:
        return frozenset({CLIENT_CANCEL})
    return frozenset({None}) if note.replayed or note.status >= HTTPStatus.BAD_REQUEST else _NOTHING


def _by_itself(note: Note, upstream: str) -> frozenset[End]:
    """The end without anybody who cancels; `upstream` is how it ended for the Router."""
    if note.whole:
        return _NOTHING if note.replayed else frozenset({FINISHED})
    if note.left:  # what the Router had ended by itself was on its way, and Envoy may have had it first
        return frozenset({CLIENT_GONE, *_ON_ITS_WAY.get(upstream, ())})
    if note.code in _OUR_ERRORS:
        return frozenset({_OUR_ERRORS[note.code]})
    # It may be ended by its plan at the moment at which the Router ends it.
    by_its_plan = frozenset({note.bound} - {None})
    if upstream == "fault":
        return by_its_plan | {UPSTREAM_RESET}
    if note.status < HTTPStatus.BAD_REQUEST:
        return by_its_plan
    return frozenset({UPSTREAM_ERROR}) if upstream == "completed" else _NOTHING
