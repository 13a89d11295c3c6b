"""Which checks are there, and what does the contract say to each? In the order in which they are done."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sidecar.router_check import answer_promises, stream_promises
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Finding, Verdict
from sidecar.router_check.spoken import DIALECTS, Spoken, Telling
from sidecar.router_check.stream_promises import of_stream


@dataclass(frozen=True, slots=True)
class Promise:
    """What the contract says, in which section of docs/router.md."""

    name: str
    section: str
    contract: str

    def found(self, verdict: Verdict) -> Finding:
        """The finding of its check."""
        return Finding(
            check=self.name,
            outcome=verdict.outcome,
            seen=verdict.seen,
            contract=self.contract,
            section=self.section,
        )


@dataclass(frozen=True, slots=True)
class DialectPromise:
    """One of a dialect: `judge` looks at what was answered in it."""

    promise: Promise
    judge: Callable[[Evidence], Verdict]


MODELS = Promise("models.list", "The connection", "GET /v1/models lists the models as OpenAI does.")
REQUEST_ID = Promise("headers.request-id", "Headers", "A request with x-request-id is answered.")
POLICY = Promise("headers.routing-policy", "Headers", "A request with x-routing-policy is answered.")
DECISION = Promise("words.decision", "Decision and cost", "x-router-decision is a JSON object.")
COST = Promise("words.cost", "Decision and cost", "x-router-cost is a JSON object with total_usd, a decimal number.")
CANCEL_UNKNOWN = Promise(
    "cancel.unknown",
    "Cancel",
    "DELETE /v1/infer/{id} of an unknown request is answered 404, or 2xx; 405 when not there.",
)
CANCEL_RUNNING = Promise(
    "cancel.running", "Cancel", "DELETE /v1/infer/{id} ends a running stream, which then has no last event."
)
CLOSE = Promise(
    "close.early", "When the client leaves", "A connection that closes in mid-stream harms no other request."
)
WIDE = (MODELS, REQUEST_ID, POLICY, DECISION, COST, CANCEL_UNKNOWN, CANCEL_RUNNING, CLOSE)

_Row = tuple[str, str, str, Callable[[Evidence], Verdict]]
_OF_ANSWERS: tuple[_Row, ...] = (
    ("answer", "Answers", "POST {path} answers a JSON object, status 2xx.", answer_promises.answers),
    ("usage", "Answers", "The answer of {path} holds usage, in whole numbers from 0.", answer_promises.says_usage),
    ("unknown-fields", "Bodies", "{path} takes fields that it does not know.", answer_promises.takes_unknown_fields),
    (
        "errors",
        "Errors",
        "{path} refuses a wrong body with 4xx and an error body of its dialect.",
        answer_promises.refuses,
    ),
    ("plain-text", "Compression", "{path} does not compress unless asked to.", answer_promises.is_plain_text),
)
_OF_STREAMS: tuple[_Row, ...] = (
    ("stream", "Streams", "A stream of {path} is text/event-stream.", of_stream(stream_promises.is_event_stream)),
    (
        "stream-form",
        "Streams",
        "Each event of {path} ends with a blank line and holds JSON.",
        of_stream(stream_promises.is_well_formed),
    ),
    ("stream-end", "Streams", "The last event of {path} is the end of its dialect.", of_stream(stream_promises.ends)),
    (
        "stream-usage",
        "Streams",
        "A stream of {path} says its usage, cumulative.",
        of_stream(stream_promises.says_usage),
    ),
    (
        "stream-pace",
        "Streams",
        "The first event of {path} is sent before the last is known.",
        of_stream(stream_promises.paces),
    ),
    (
        "stream-events",
        "Streams",
        "{path} writes an event per token or piece.",
        of_stream(stream_promises.writes_an_event_per_token),
    ),
)


_OF_RESPONSES: _Row = (
    "id",
    "Response ids",
    "The id of a response of {path} is resp_ and the x-request-id.",
    answer_promises.bears_the_request_id,
)


def promises_of(spoken: Spoken) -> tuple[DialectPromise, ...]:
    """What is promised of a dialect."""
    rows = _OF_ANSWERS
    if spoken.telling is not Telling.NEVER:
        rows += _OF_STREAMS
    if spoken.telling is Telling.AT_THE_END:
        rows += (_OF_RESPONSES,)
    return tuple(
        DialectPromise(Promise(f"{spoken.name}.{name}", section, contract.format(path=spoken.path)), judge)
        for name, section, contract, judge in rows
    )


def names() -> tuple[str, ...]:
    """The names of all checks."""
    of_dialects = [one.promise.name for spoken in DIALECTS for one in promises_of(spoken)]
    return (*of_dialects, *(promise.name for promise in WIDE))


def chosen(patterns: tuple[str, ...]) -> frozenset[str]:
    """The checks that the patterns mean: a name, a name's first part, or either with * in it; all, when there are none.

    `ValueError` names a pattern that means none.
    """
    every, found = names(), set[str]()
    for pattern in patterns:
        meant = {name for name in every if fnmatchcase(name, pattern) or fnmatchcase(name.partition(".")[0], pattern)}
        if not meant:
            raise ValueError(pattern)
        found |= meant
    return frozenset(found if patterns else every)
