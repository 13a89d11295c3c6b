"""Can what the Router says of its decision and of the cost be read, wherever it says it?"""

import re
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from sidecar.router_check.answer import json_object
from sidecar.router_check.event_stream import read_stream
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Verdict, failed, passed, skipped
from sidecar.router_check.spoken import Spoken

DECISION, COST = "x-router-decision", "x-router-cost"
_MOST_BYTES = 8192
_MOST_DOLLARS = 1_000_000
_PRINTABLE = re.compile(r"[\t -~]*")


def decision_is_readable(evidences: Iterable[Evidence]) -> Verdict:
    """A JSON object."""
    return _judged(DECISION, evidences, lambda _: "")


def cost_is_readable(evidences: Iterable[Evidence]) -> Verdict:
    """A JSON object whose total_usd is a number of dollars."""
    return _judged(COST, evidences, _cost_fault)


def _judged(name: str, evidences: Iterable[Evidence], fault_of: Callable[[dict[str, Any]], str]) -> Verdict:
    said = [word for evidence in evidences for word in _words(name, evidence)]
    if not said:
        return skipped(f"no answer says {name}")
    for word in said:
        fault = word.fault or _fault(word.text, fault_of)
        if fault:
            return failed(f"{fault}: {word.text[:80]}")
    return passed(f"{len(said)} answers say it: {said[0].text[:80]}")


def _fault(text: str, fault_of: Callable[[dict[str, Any]], str]) -> str:
    if len(text) > _MOST_BYTES or not _PRINTABLE.fullmatch(text):
        return f"longer than {_MOST_BYTES} bytes, or more than ASCII"
    fields = json_object(text)
    return "no JSON object" if fields is None else fault_of(fields)


class _Word(NamedTuple):
    """What a header or a comment says, and why it is not read from there, if it is not."""

    text: str
    fault: str = ""


def _words(name: str, evidence: Evidence) -> Iterator[_Word]:
    for answer in (evidence.plain, evidence.stream):
        if answer is None or not answer.ok:
            continue
        if (text := answer.headers.get(name)) is not None:
            yield _Word(text)
        if answer is evidence.stream:
            yield from _commented(name, answer.body, evidence.spoken)


def _commented(name: str, body: bytes, spoken: Spoken) -> Iterator[_Word]:
    ended = False
    for block in read_stream(body).blocks:
        for comment in block.comments:
            if not comment.removeprefix(":").lstrip().startswith(name):
                continue
            if ended:
                yield _Word(comment, "behind the last event")
            elif comment.startswith(f": {name} "):
                yield _Word(comment.removeprefix(f": {name} "))
            else:
                yield _Word(comment, f"it must begin with ': {name} '")
        ended = ended or spoken.is_terminal(block)


def _cost_fault(fields: dict[str, Any]) -> str:
    total = fields.get("total_usd")
    if isinstance(total, bool) or not isinstance(total, int | float | str):
        return "no total_usd"
    try:
        number = Decimal(str(total))
    except InvalidOperation:
        return "total_usd is no decimal number"
    return "" if number.is_finite() and 0 <= number <= _MOST_DOLLARS else "total_usd is no amount of a request"
