"""What does the gateway count? Prometheus metrics, as a projection of the outcomes that the services report.

Each process keeps its numbers in files of PROMETHEUS_MULTIPROC_DIR; `serve` adds them up at /metrics. A tenant's id is
never a label: their number is not bounded.
"""

import asyncio
import math
from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import Counter, Gauge

from authz.grant import Grant
from authz.key_set import KeySetStatus
from authz.refusal import Refusal
from authz.token import RefusedToken
from extproc.record import Admission, Ending

GRANTED = "granted"
PUBLIC = "public"
ADMITTED = "admitted"
_EXPORT_SECONDS = 1.0

CHECKS = Counter(
    "gateway_checks", "Decisions of ext_authz, by outcome: granted, public, or the reason of the refusal.", ["outcome"]
)
ADMISSIONS = Counter(
    "gateway_admissions", "Decisions of ext_proc, by outcome: admitted, or the reason of the refusal.", ["outcome"]
)
TOKENS_REFUSED = Counter("gateway_tokens_refused", "JWTs that were not right, by what was wrong.", ["issuer", "flaw"])
KEY_SET_AGE = Gauge(
    "gateway_key_set_age_seconds",
    "Age of the oldest copy of an issuer's JWKS; +Inf where it was never had.",
    ["issuer"],
    multiprocess_mode="livemax",
)
KEY_SET_FAILURES = Gauge(
    "gateway_key_set_failures",
    "Fetches of an issuer's JWKS that failed since the last good one.",
    ["issuer"],
    multiprocess_mode="livemax",
)
AUDIT_DROPPED = Counter(
    "gateway_audit_dropped", "Refused credentials that found no room to wait for the audit trail in."
)
DIRECTORY_READS = Counter(
    "gateway_directory_reads", "Principals that were read from Postgres, by outcome.", ["outcome"]
)
REQUESTS = Counter(
    "gateway_requests_settled", "Requests settled, by how they ended.", ["state", "cause", "usage_source"]
)
TOKENS = Counter("gateway_tokens", "Tokens of settled requests.", ["direction", "usage_source"])
ERRORS = Counter("gateway_errors", "Failures that are the gateway's own fault, by exception.", ["error"])
SETTLEMENTS_WAITING = Gauge(
    "gateway_settlements_waiting", "Settlements that Redis has not taken yet.", multiprocess_mode="livesum"
)
LEDGER_ROWS = Counter("gateway_ledger_rows", "Rows written to the ledger.")
LEDGER_BACKLOG = Gauge(
    "gateway_ledger_backlog", "Settled requests that are not in the ledger yet.", multiprocess_mode="livemostrecent"
)

# Counting in a dictionary costs a tenth of a labelled counter in a shared file: requests count here, and `flush`
# carries the sums over once a second.
_tally: Tally[tuple[Counter, tuple[str, ...]]] = Tally()


def observe_check(outcome: Grant | Refusal | None) -> None:
    """Count a decision of ext_authz; None for a public route."""
    label = PUBLIC if outcome is None else outcome.reason.code if isinstance(outcome, Refusal) else GRANTED
    _tally[CHECKS, (label,)] += 1


def observe_admission(outcome: Admission | Refusal) -> None:
    """Count a decision of ext_proc."""
    _tally[ADMISSIONS, (outcome.reason.code if isinstance(outcome, Refusal) else ADMITTED,)] += 1


def observe_settlement(admission: Admission, ending: Ending) -> None:
    """Count a settled request."""
    del admission
    _tally[REQUESTS, (ending.state.value, ending.cause.value, ending.usage_source.value)] += 1
    _tally[TOKENS, ("input", ending.usage_source.value)] += ending.input_tokens
    _tally[TOKENS, ("output", ending.usage_source.value)] += ending.output_tokens


def observe_directory_read(outcome: str) -> None:
    """Count a principal that was looked up in Postgres: found, unknown or outage."""
    _tally[DIRECTORY_READS, (outcome,)] += 1


def observe_tokens(observed: KeySetStatus | RefusedToken) -> None:
    """Count a refused JWT, or show how things stand with an issuer's keys."""
    if isinstance(observed, RefusedToken):
        _tally[TOKENS_REFUSED, (observed.issuer, observed.flaw.value)] += 1
        return
    KEY_SET_AGE.labels(observed.issuer).set(math.inf if observed.age_seconds is None else observed.age_seconds)
    KEY_SET_FAILURES.labels(observed.issuer).set(observed.failures)


def flush() -> None:
    """Carry what was counted since the last call over to Prometheus."""
    counted = dict(_tally)
    _tally.clear()
    for (metric, labels), amount in counted.items():
        metric.labels(*labels).inc(amount)


async def export(waiting: Callable[[], int]) -> None:
    """Carry everything over once a second, and once more at the end; `waiting` counts the settlements that wait."""
    try:
        while True:
            await asyncio.sleep(_EXPORT_SECONDS)
            SETTLEMENTS_WAITING.set(waiting())
            flush()
    finally:
        flush()


def error_observer(log: Callable[[Exception], None]) -> Callable[[Exception], None]:
    """An observer of our own failures that counts and logs them."""

    def observe(error: Exception) -> None:
        ERRORS.labels(type(error).__name__).inc()
        log(error)

    return observe
