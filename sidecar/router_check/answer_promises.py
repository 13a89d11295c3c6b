"""Does an answer in JSON say what it must, and does a refusal?"""

from typing import Any

from sidecar.router_check.answer import Answer, inner, json_object
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Verdict, failed, passed, skipped
from sidecar.router_check.spoken import Telling
from sidecar.router_check.usage_numbers import read_usage

_REFUSALS = range(400, 500)
_NOT_ENCODED = frozenset({"", "identity"})


def answers(evidence: Evidence) -> Verdict:
    """A JSON object, with a status of success."""
    plain = evidence.plain
    if plain.ok and plain.is_json and json_object(plain.body) is not None:
        return passed(f"status {plain.status}, {len(plain.body)} bytes of JSON")
    return failed(plain.described())


def says_usage(evidence: Evidence) -> Verdict:
    """Numbers that can be charged, of all that the dialect has."""
    said = inner(json_object(evidence.plain.body), "usage")
    if not isinstance(said, dict):
        return failed("the answer has no usage: it would be charged by its bytes")
    tokens = read_usage(said)
    if isinstance(tokens, str):
        return failed(tokens)
    has_output = evidence.spoken.telling is not Telling.NEVER
    if tokens.input is None or (has_output and tokens.output is None):
        return failed(f"only one of two numbers is said: {tokens or 'none'}")
    return passed(str(tokens))


def takes_unknown_fields(evidence: Evidence) -> Verdict:
    """The gateway passes all fields that it does not know."""
    extended = evidence.extended
    if extended is None or not evidence.plain.ok:
        return skipped("there is no good answer to compare with")
    return passed(f"status {extended.status}") if extended.ok else failed(extended.described())


def refuses(evidence: Evidence) -> Verdict:
    """A wrong body gets a status of the client's fault, and an error body of the dialect."""
    wrong = evidence.wrong
    if wrong is None:
        return skipped("nothing was refused")
    if wrong.status not in _REFUSALS or wrong.failure:
        return failed(f"a field of the wrong type: {wrong.described()}")
    fields = json_object(wrong.body)
    fault = "no JSON" if fields is None or not wrong.is_json else _error_fault(evidence, fields)
    return failed(f"{fault}: {wrong.described()}") if fault else passed(f"status {wrong.status}, an error in JSON")


def _error_fault(evidence: Evidence, fields: dict[str, Any]) -> str:
    if not isinstance(inner(fields, "error", "message"), str):
        return "no error.message"
    if evidence.spoken.telling is not Telling.CUMULATIVE:
        return ""
    # Anthropic's SDKs choose their exception by the status, and their users by the type.
    anthropics = fields.get("type") == "error" and isinstance(inner(fields, "error", "type"), str)
    return "" if anthropics else "not of Anthropic's shape"


def is_plain_text(evidence: Evidence) -> Verdict:
    """No compression that was not asked for."""
    found = [one for one in (evidence.plain, evidence.stream) if one is not None and one.ok]
    if not found:
        return skipped("there is no answer")
    encodings = {_encoding(one) for one in found} - _NOT_ENCODED
    if encodings:
        return failed(f"content-encoding: {', '.join(sorted(encodings))}, though no accept-encoding was sent")
    return passed("no content-encoding")


def _encoding(answer: Answer) -> str:
    return answer.headers.get("content-encoding", "").lower()


def bears_the_request_id(evidence: Evidence) -> Verdict:
    """A client of the Responses API knows nothing but the id of the response, and cancels by it."""
    found = (json_object(evidence.plain.body) or {}).get("id")
    wanted = f"resp_{evidence.request_id}"
    return passed(wanted) if found == wanted else failed(f"the id is {found!r}, not {wanted}")
