"""Which findings are there on a Router? Asks all that the chosen checks need, and judges it."""

from sidecar.router_check import conduct
from sidecar.router_check.catalogue import (
    CANCEL_RUNNING,
    CANCEL_UNKNOWN,
    CLOSE,
    COST,
    DECISION,
    MODELS,
    POLICY,
    REQUEST_ID,
    WIDE,
    Promise,
    promises_of,
)
from sidecar.router_check.evidence import Evidence
from sidecar.router_check.finding import Finding, Verdict, skipped
from sidecar.router_check.probe import Probe, Target
from sidecar.router_check.spoken import DIALECTS, Spoken, Telling
from sidecar.router_check.word_promises import cost_is_readable, decision_is_readable


class NoModelError(Exception):
    """The Router lists no models, and none was named."""


async def findings(target: Target, chosen: frozenset[str], model: str | None) -> list[Finding]:
    """Do the chosen checks, one request at a time. `RouterAwayError`; `NoModelError`."""
    async with Probe(target) as probe:
        listed = await probe.models()
        name = model or next(iter(conduct.model_ids(listed)), None)
        if name is None:
            raise NoModelError
        wide = [promise for promise in WIDE if promise.name in chosen]
        evidences = [await probe.evidence(spoken, name) for spoken in DIALECTS if _is_needed(spoken, chosen)]
        found = [one for evidence in evidences for one in _of_dialect(evidence) if one.check in chosen]
        seen = {MODELS: conduct.lists_models(listed)}
        seen |= {DECISION: decision_is_readable(evidences), COST: cost_is_readable(evidences)}
        for promise in wide:
            verdict = seen.get(promise) or await _conduct(promise, probe, evidences, name)
            found.append(promise.found(verdict))
        return found


def _is_needed(spoken: Spoken, chosen: frozenset[str]) -> bool:
    # Words may stand in any answer.
    names = {DECISION.name, COST.name, *(one.promise.name for one in promises_of(spoken))}
    return not names.isdisjoint(chosen)


def _of_dialect(evidence: Evidence) -> list[Finding]:
    missing = None
    if not evidence.plain.is_offered:
        missing = skipped(f"not offered: status {evidence.plain.status}")
    return [one.promise.found(missing or one.judge(evidence)) for one in promises_of(evidence.spoken)]


async def _conduct(promise: Promise, probe: Probe, evidences: list[Evidence], model: str) -> Verdict:
    if promise is CANCEL_UNKNOWN:
        return await conduct.forgives_unknown_cancel(probe)
    spoken = await _able(probe, evidences, model)
    if spoken is None:
        return skipped("no path that generates gives an answer")
    act = {
        REQUEST_ID: conduct.takes_request_id,
        POLICY: conduct.takes_policy,
        CANCEL_RUNNING: conduct.stops,
        CLOSE: conduct.survives_a_close,
    }[promise]
    return await act(probe, spoken, model)


async def _able(probe: Probe, evidences: list[Evidence], model: str) -> Spoken | None:
    """One dialect that generates, and in which the Router answers."""
    known = {one.spoken.name: one.plain for one in evidences}
    for spoken in DIALECTS:
        if spoken.telling is Telling.NEVER:
            continue
        plain = known.get(spoken.name) or await probe.ask(spoken.path, spoken.body(model))
        if plain.ok:
            return spoken
    return None
