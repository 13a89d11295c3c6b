"""What does the gateway count? Prometheus metrics, as a projection of the outcomes that the services report.

Each process keeps its numbers in files of PROMETHEUS_MULTIPROC_DIR; `serve` adds them up at /metrics. A tenant's id is
never a label: their number is not bounded.
"""

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from authz.grant import Grant
from authz.refusal import Refusal
from extproc.record import Admission, Ending

GRANTED = "granted"
ADMITTED = "admitted"

CHECKS = Counter(
    "gateway_checks", "Decisions of ext_authz, by outcome: granted, or the reason of the refusal.", ["outcome"]
)
ADMISSIONS = Counter(
    "gateway_admissions", "Decisions of ext_proc, by outcome: admitted, or the reason of the refusal.", ["outcome"]
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


def observe_check(outcome: Grant | Refusal) -> None:
    """Count a decision of ext_authz."""
    CHECKS.labels(outcome.reason.code if isinstance(outcome, Refusal) else GRANTED).inc()


def observe_admission(outcome: Admission | Refusal) -> None:
    """Count a decision of ext_proc."""
    ADMISSIONS.labels(outcome.reason.code if isinstance(outcome, Refusal) else ADMITTED).inc()


def observe_settlement(admission: Admission, ending: Ending) -> None:
    """Count a settled request."""
    del admission
    REQUESTS.labels(ending.state.value, ending.cause.value, ending.usage_source.value).inc()
    TOKENS.labels("input", ending.usage_source.value).inc(ending.input_tokens)
    TOKENS.labels("output", ending.usage_source.value).inc(ending.output_tokens)


def error_observer(log: Callable[[Exception], None]) -> Callable[[Exception], None]:
    """An observer of our own failures that counts and logs them."""

    def observe(error: Exception) -> None:
        ERRORS.labels(type(error).__name__).inc()
        log(error)

    return observe
