"""What does the gateway count? Prometheus metrics, as a projection of the outcomes that the services report.

Each process keeps its numbers in files of PROMETHEUS_MULTIPROC_DIR; `serve` adds them up at /metrics. A tenant's id is
never a label: their number is not bounded.
"""

import asyncio
import math
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram

from authz.grant import Grant
from authz.key_set import KeySetStatus
from authz.refusal import Refusal
from authz.token import RefusedToken
from extproc.idempotency import Replay
from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageSource
from quota.limit import Limit, OnOutage
from sidecar.webhook_retries import Fate
from store.webhook_upkeep import Backlog

GRANTED = "granted"
PUBLIC = "public"
ADMITTED = "admitted"
REPLAYED = "replayed"
_EXPORT_SECONDS = 1.0

CHECKS = Counter(
    "gateway_checks", "Decisions of ext_authz, by outcome: granted, public, or the reason of the refusal.", ["outcome"]
)
ADMISSIONS = Counter(
    "gateway_admissions",
    "Decisions of ext_proc, by outcome: admitted, replayed, or the reason of the refusal.",
    ["outcome"],
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
STOPS = Counter("gateway_stops", "Requests that a worker stopped while they ran, by cause.", ["cause"])
CANCELS = Histogram(
    "gateway_cancel_seconds",
    "How long callers who cancelled a request waited for its end, by what came of it.",
    ["outcome"],
    buckets=(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5),
)
ROUTER_STOPS = Counter("gateway_router_stops", "Requests that the Router was asked to stop, by outcome.", ["outcome"])
LIMIT_REFUSALS = Counter(
    "gateway_limit_refusals", "Requests that a limit refused, or in shadow mode would have refused.", ["limit", "mode"]
)
OUTAGE_DECISIONS = Counter(
    "gateway_outage_decisions",
    "Admissions decided while the limits could not be asked, by the strictest class of the request's limits.",
    ["on_outage", "outcome"],
)
LIMITS_OUT = Gauge(
    "gateway_limits_out", "Workers that cannot ask the limits now, as far as they know.", multiprocess_mode="livesum"
)
LEASES_HELD = Gauge(
    "gateway_leases_held", "Requests that hold a reservation in Redis now.", multiprocess_mode="livemostrecent"
)
LIVE_REQUESTS = Gauge(
    "gateway_live_requests", "Admitted requests whose ext_proc stream a worker holds.", multiprocess_mode="livesum"
)
SHED_SHARE = Gauge(
    "gateway_shed_share_thousandths", "Share of the work that is shed under overload.", multiprocess_mode="livemax"
)
ESTIMATE_RATIO = Histogram(
    "gateway_estimate_ratio",
    "Tokens reserved over tokens used, of completed requests whose Router said its usage.",
    ["direction"],
    buckets=(0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 16.0),
)
COST = Counter("gateway_cost_micros", "Micro-dollars of settled requests.")
REBUILDS = Counter("gateway_counters_rebuilt", "Counters that were made anew from the ledger after Redis lost them.")
DRIFT_REPAIRED = Counter("gateway_drift_repaired", "Counters that had drifted from the ledger and were repaired.")
CHARGED_LATE = Counter(
    "gateway_charged_late", "Settled requests that no counter held, charged to their limits afterwards."
)
WEBHOOKS = Counter("gateway_webhook_deliveries", "Attempts to deliver a webhook, by what became of it.", ["outcome"])
WEBHOOK_BACKLOG = Gauge(
    "gateway_webhook_backlog",
    "Deliveries of webhooks that wait, 100,000 at most.",
    multiprocess_mode="livemostrecent",
)
WEBHOOK_LATE = Gauge(
    "gateway_webhook_late_seconds",
    "For how long the first delivery of a webhook that waits has been due.",
    multiprocess_mode="livemostrecent",
)
LEDGER_ROWS = Counter("gateway_ledger_rows", "Rows written to the ledger.")
LEDGER_BACKLOG = Gauge(
    "gateway_ledger_backlog", "Settled requests that are not in the ledger yet.", multiprocess_mode="livemostrecent"
)
LEDGER_LAG = Gauge(
    "gateway_ledger_lag_seconds",
    "How long ago the oldest request was settled that is not in the ledger yet; 0 without one.",
    multiprocess_mode="livemostrecent",
)

# Counting in a dictionary costs a tenth of a labelled counter in a shared file: requests count here, and `flush`
# carries the sums over once a second.
_tally: Tally[tuple[Counter, tuple[str, ...]]] = Tally()
_ratios: dict[str, list[float]] = {"input": [], "output": []}


def observe_check(outcome: Grant | Refusal | None) -> None:
    """Count a decision of ext_authz; None for a public route."""
    label = PUBLIC if outcome is None else outcome.reason.code if isinstance(outcome, Refusal) else GRANTED
    _tally[CHECKS, (label,)] += 1


def observe_admission(outcome: Admission | Refusal | Replay) -> None:
    """Count a decision of ext_proc, and of the limit that refused."""
    if isinstance(outcome, Replay):
        _tally[ADMISSIONS, (REPLAYED,)] += 1
        return
    if not isinstance(outcome, Refusal):
        _tally[ADMISSIONS, (ADMITTED,)] += 1
        return
    _tally[ADMISSIONS, (outcome.reason.code,)] += 1
    if "limit" in outcome.details:
        _tally[LIMIT_REFUSALS, (str(outcome.details["limit"]), "enforce")] += 1


def observe_shadowed(limit: Limit) -> None:
    """Count a limit in shadow mode that would have refused."""
    _tally[LIMIT_REFUSALS, (limit.name, limit.mode.value)] += 1


def observe_stop(cause: Cause) -> None:
    """Count a request that this worker stopped."""
    _tally[STOPS, (cause.value,)] += 1


def observe_cancel(outcome: str, seconds: float) -> None:
    """Count a call that cancels a request, and how long it took."""
    CANCELS.labels(outcome).observe(seconds)


def observe_router_stop(outcome: str) -> None:
    """Count a request that the Router was asked to stop."""
    ROUTER_STOPS.labels(outcome).inc()


def observe_outage_decision(on_outage: OnOutage, *, passed: bool) -> None:
    """Count a decision that was made without the limits."""
    _tally[OUTAGE_DECISIONS, (on_outage.value, ADMITTED if passed else "refused")] += 1


def observe_settlement(admission: Admission, ending: Ending) -> None:
    """Count a settled request, and how well it was estimated."""
    if ending.usage_source is UsageSource.EXACT and ending.state is State.COMPLETED:
        _observe_ratio("input", admission.input_estimate, ending.input_tokens)
        _observe_ratio("output", admission.output_reserved, ending.output_tokens)
    _tally[COST, ()] += ending.charges.cost
    _tally[REQUESTS, (ending.state.value, ending.cause.value, ending.usage_source.value)] += 1
    _tally[TOKENS, ("input", ending.usage_source.value)] += ending.input_tokens
    _tally[TOKENS, ("output", ending.usage_source.value)] += ending.output_tokens


def _observe_ratio(direction: str, reserved: int, used: int) -> None:
    if reserved and used:
        _ratios[direction].append(reserved / used)


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


def observe_webhook(fate: Fate, times: int) -> None:
    """Count what became of attempts to deliver webhooks."""
    WEBHOOKS.labels(fate.value).inc(times)


def show_webhooks(backlog: Backlog) -> None:
    """Show how much waits for webhooks."""
    WEBHOOK_BACKLOG.set(backlog.waiting)
    WEBHOOK_LATE.set(backlog.late_seconds)


def flush() -> None:
    """Carry what was counted since the last call over to Prometheus."""
    counted = dict(_tally)
    _tally.clear()
    for (metric, labels), amount in counted.items():
        (metric.labels(*labels) if labels else metric).inc(amount)
    for direction, ratios in _ratios.items():
        _observe_all(ESTIMATE_RATIO.labels(direction), ratios)
        ratios.clear()


def _observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """What `observe` does with each of the values, at the cost of few of them."""
    bounds = histogram._upper_bounds  # noqa: SLF001 - prometheus_client has no way to observe many
    for index, count in Tally(bisect_left(bounds, value) for value in values).items():
        histogram._buckets[index].inc(count)  # noqa: SLF001
    if values:
        histogram._sum.inc(sum(values))  # noqa: SLF001


async def export(show: Callable[[], None]) -> None:
    """Carry everything over once a second, and once more at the end; `show` sets the gauges before."""
    try:
        while True:
            await asyncio.sleep(_EXPORT_SECONDS)
            show()
            flush()
    finally:
        flush()


def error_observer(log: Callable[[Exception], None]) -> Callable[[Exception], None]:
    """An observer of our own failures that counts and logs them."""

    def observe(error: Exception) -> None:
        ERRORS.labels(type(error).__name__).inc()
        log(error)

    return observe
