"""How is it told? One table, and under it whether the budgets hold. Nothing here fails: it reports."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.bench.held_streams import Held
from tests.bench.limits import Measured
from tests.bench.measurement import CHECK_KINDS, CHECK_VARIANTS, JSON_VARIANTS, STREAM_VARIANTS, Round, Variant, medians
from tests.bench.revocation import Revocations
from tests.bench.stage import BARE, FLOOR, GATEWAY
from tests.bench.transports import CALLS, CONNECTIONS, NO_CALLS, Cost, Transports

# docs/benchmarks/README.md says where they come from.
JSON_BUDGET_US = 300.0
WHOLE_BUDGET_US = 650.0
ALONE_BUDGET_MS = 1.0
CHECK_BUDGET = 1.3
LIMITS_BUDGET_US = 150.0
REVOCATION_BUDGET_MS = 1000.0
SILENT_BUDGET_MS = 5000.0
STREAM_BUDGET = 2.0

_WIDTH, _TITLE = 9, 32
_GROUPS = ("envoy", "sidecar", "workers", "redis", "postgres")
_COLUMNS = (
    "per s",
    "p50 ms",
    "p99 ms",
    "max ms",
    "Envoy",
    "sidecar",
    "(workers)",
    "Redis",
    "Postgres",
    "x bare",
    "(Router)",
)
_TRANSPORT_COLUMNS = ("per s", "p50 ms", "p50 alone", "Envoy", "added", "server", "switches")
_SECTIONS = {
    "json": "JSON requests: latency of the answer; CPU µs per request",
    "alone": "the same on one connection",
    "json_grpcio": "JSON requests, with grpcio's server in the place of the lean one, on servers of their own",
    "alone_grpcio": "the same on one connection",
    "check": "requests that only Check decides about (GET /v1/models); CPU µs per request",
    "check_million": "the same with 1,000,000 keys in the database",
    "streams": "streams: latency of the first event, Router's write to client's read; CPU µs per event",
    "disconnect": "the client leaves: latency from its close until the Router knows",
}


@dataclass(slots=True)
class Results:
    """The rounds by kind of load and variant, and what the idle gateway uses (CPU milliseconds a second)."""

    rounds: dict[str, dict[str, list[Round]]] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    revocations: dict[str, Revocations] = field(default_factory=dict)
    transports: Transports | None = None
    limits: Measured | None = None
    held: Held | None = None

    def add(self, kind: str, variant: str, measured: Round) -> None:
        self.rounds.setdefault(kind, {}).setdefault(variant, []).append(measured)

    def medians(self, kind: str) -> dict[str, Round]:
        return {name: medians(rounds) for name, rounds in self.rounds.get(kind, {}).items()}

    def as_json(self) -> dict[str, Any]:
        return {
            **{
                kind: {name: {"median": medians(rounds), "rounds": rounds} for name, rounds in by_name.items()}
                for kind, by_name in self.rounds.items()
            },
            "idle_cpu_ms_per_second": self.idle,
            "revocation_ms": self.revocations,
            "transports": self.transports,
            "limits": self.limits,
            "held_streams": self.held,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A line under the table. `holds` is None where there is no budget, only a number."""

    what: str
    value: str
    holds: bool | None


def table(results: Results) -> str:
    lines = list(_transport_rows(results.transports)) if results.transports else []
    if lines and not (results.rounds or results.limits or results.held):
        return "\n".join(lines)
    lines += [""] * bool(lines) + [_line("", _COLUMNS)]
    for kind, heading in _SECTIONS.items():
        if kind in results.rounds:
            variants = JSON_VARIANTS | STREAM_VARIANTS | CHECK_VARIANTS
            lines += ["", heading, *_rows(variants, results.medians(kind), with_cpu=kind != "disconnect")]
    if results.limits:
        lines += ["", *_limit_rows(results.limits)]
    if results.held:
        lines += ["", *_held_rows(results.held)]
    if results.idle:
        cells = ["-"] * 4 + [f"{results.idle[group]:.1f}" for group in _GROUPS] + ["-", f"{results.idle['router']:.1f}"]
        lines += ["", "nobody calls: CPU ms per second", _line("gateway", cells)]
    return "\n".join(lines)


def budgets(results: Results) -> list[Budget]:
    found = []
    json, streams = results.medians("json"), results.medians("streams")
    if json:
        found += _json_budgets(json)
    if alone := results.medians("alone"):
        added = alone[GATEWAY].p50_ms - alone[BARE].p50_ms
        what = f"added at the median on one connection: less than {ALONE_BUDGET_MS:g} ms"
        found.append(Budget(what=what, value=f"{added:.2f} ms", holds=added < ALONE_BUDGET_MS))
    for kind in ("json", "alone"):
        found += _compared(kind, results.medians(kind), results.medians(f"{kind}_grpcio"))
    for kind in CHECK_KINDS:
        found += _check_budgets(kind, results.medians(kind))
    found += _revocation_budgets(results.revocations)
    if results.limits:
        found += _limit_budgets(results.limits)
    if streams:
        bare, native = streams[BARE].cpu_us, streams["native"].cpu_us
        ratio = (native["envoy"] + native["sidecar"]) / bare["envoy"]
        what = f"native streaming: CPU of Envoy and sidecar per event at most {STREAM_BUDGET:g} x bare Envoy's"
        found.append(Budget(what=what, value=f"{ratio:.2f} x", holds=ratio <= STREAM_BUDGET))
    return found


def _json_budgets(rows: Mapping[str, Round]) -> list[Budget]:
    sidecar, floor = rows[GATEWAY].cpu_us["sidecar"], rows[FLOOR].cpu_us["sidecar"]
    whole = rows[GATEWAY].paid_us / rows[FLOOR].paid_us
    rate = rows[GATEWAY].per_second / rows[FLOOR].per_second
    return [
        Budget(
            what=f"sidecar: CPU of all its processes per JSON request at most {JSON_BUDGET_US:g} µs",
            value=f"{sidecar:.0f} µs",
            holds=sidecar <= JSON_BUDGET_US,
        ),
        Budget(
            what=f"Envoy, sidecar and stores: CPU per JSON request at most {WHOLE_BUDGET_US:g} µs",
            value=f"{rows[GATEWAY].paid_us:.0f} µs",
            holds=rows[GATEWAY].paid_us <= WHOLE_BUDGET_US,
        ),
        Budget(what="gateway / floor: CPU of the sidecar", value=f"{sidecar / floor:.2f} x", holds=None),
        Budget(what="gateway / floor: CPU of all parts, stores too", value=f"{whole:.2f} x", holds=None),
        Budget(what="gateway / floor: requests per second", value=f"{rate:.2f} x", holds=None),
    ]


def _compared(kind: str, lean: Mapping[str, Round], grpcio: Mapping[str, Round]) -> Iterable[Budget]:
    """Both by what the Router costs at the same time: the two stages stand one after the other, on a noisy machine."""
    if not lean or not grpcio:
        return
    for group in ("sidecar", "envoy"):
        ratio = _of_router(grpcio[GATEWAY], group) / _of_router(lean[GATEWAY], group)
        what = f"grpcio / lean, {_SECTIONS[kind].partition(':')[0]}: CPU of {group}, each by the Router's"
        yield Budget(what=what, value=f"{ratio:.2f} x", holds=None)


def _of_router(row: Round, group: str) -> float:
    return row.cpu_us[group] / row.cpu_us["router"]


def _check_budgets(kind: str, rows: Mapping[str, Round]) -> Iterable[Budget]:
    """The workers' CPU alone: the recorder, which hears of these requests too, is no part of Check."""
    where = " with 1,000,000 keys" if kind == "check_million" else ""
    for name in (name for name in rows if name != FLOOR):
        ratio = rows[name].cpu_us["workers"] / rows[FLOOR].cpu_us["workers"]
        budget = f" at most {CHECK_BUDGET:g} x" if name == "key" else ""
        what = f"warm Check by {name}{where}: CPU of the workers{budget} the floor's"
        yield Budget(what=what, value=f"{ratio:.2f} x", holds=ratio <= CHECK_BUDGET if budget else None)


def _revocation_budgets(found: Mapping[str, Revocations]) -> Iterable[Budget]:
    for name, ms in found.items():
        budget = REVOCATION_BUDGET_MS if name == "announced" else SILENT_BUDGET_MS
        what = f"a revoked key ({name}) is refused by every worker within {budget:,.0f} ms"
        value = f"p50 {ms.p50_ms:.1f}, p99 {ms.p99_ms:.1f}, max {ms.max_ms:.1f} ms of {ms.count}"
        yield Budget(what=what, value=value, holds=ms.max_ms <= budget)


def _transport_rows(measured: Transports) -> Iterable[str]:
    yield f"calls of Envoy on {CONNECTIONS} connections, alone on one; CPU µs and context switches per request"
    yield _line("", _TRANSPORT_COLUMNS)
    bare = measured.bare.median
    yield _line(CALLS[NO_CALLS].title, _transport_cells(bare, bare)[:4])
    for kind, by_server in measured.calls.items():
        costs = {server: found.median for server, found in by_server.items()}
        for server, cost in costs.items():
            yield _line(f"{CALLS[kind].title}: {server}", _transport_cells(cost, bare))
        reference, *others = costs
        for other in others:
            yield _line(f"  {reference} / {other}", _transport_ratios(costs[reference], costs[other], bare))


def _transport_cells(cost: Cost, bare: Cost) -> list[str]:
    waits = (f"{cost.p50_ms:.2f}", f"{cost.alone_p50_ms:.2f}")
    used = (f"{cost.envoy_us:.1f}", f"{cost.envoy_us - bare.envoy_us:.1f}", f"{cost.server_us:.1f}")
    return [f"{cost.per_second:,.0f}", *waits, *used, f"{cost.switches:.2f}"]


def _transport_ratios(one: Cost, other: Cost, bare: Cost) -> list[str]:
    pairs = (
        (one.per_second, other.per_second),
        (one.p50_ms, other.p50_ms),
        (one.alone_p50_ms, other.alone_p50_ms),
        (one.envoy_us, other.envoy_us),
        (one.envoy_us - bare.envoy_us, other.envoy_us - bare.envoy_us),
        (one.server_us, other.server_us),
    )
    # Those of a server that hardly ever waits are too few to divide by.
    return [*(f"{above / below:.2f}" for above, below in pairs), "-"]


def _limit_rows(measured: Measured) -> Iterable[str]:
    yield "limits: reserve and settle, beyond the same loop with none; CPU µs per request"
    for count, cost in measured.limits.items():
        title = "1 limit" if count == "1" else f"{count} limits"
        yield _line(title, [*["-"] * 5, f"{cost.sidecar_us:.1f}", "-", f"{cost.redis_us:.1f}", *["-"] * 3])
    signs = measured.streams
    yield f"signs of life of {signs.streams:,} streams, one each 5 s: CPU ms per second"
    own, redis = signs.sidecar_percent * 10, signs.redis_percent * 10
    yield _line("recorder", [*["-"] * 5, f"{own:.1f}", "-", f"{redis:.1f}", *["-"] * 3])


def _held_rows(held: Held) -> Iterable[str]:
    yield f"{held.streams:,} streams held for {held.seconds:g} s: resident memory"
    for name, mib in held.mib.items():
        a_stream, growth = held.kib_a_stream[name], held.growth_percent[name]
        yield f"{name:<{_TITLE}}{a_stream:>8.1f} KiB a stream{mib:>9.0f} MiB in all{growth:>+8.1f} % meanwhile"
    yield f"all clients leave: everything is in the ledger after {held.forgotten_seconds:.1f} s, and no slot is held"


def _limit_budgets(measured: Measured) -> Iterable[Budget]:
    for count, cost in measured.limits.items():
        what = f"reserve and settle under {count} limit(s): sidecar CPU at most {LIMITS_BUDGET_US:g} µs a request"
        yield Budget(what=what, value=f"{cost.sidecar_us:.0f} µs", holds=cost.sidecar_us <= LIMITS_BUDGET_US)


def budget_lines(found: Iterable[Budget]) -> str:
    words = {True: "yes", False: "no", None: "-"}
    return "\n".join(f"{words[one.holds]:<4} {one.what}: {one.value}" for one in found)


def _rows(variants: Mapping[str, Variant], rows: Mapping[str, Round], *, with_cpu: bool) -> list[str]:
    return [_line(variants[name].title, _cells(row, rows.get(BARE), with_cpu=with_cpu)) for name, row in rows.items()]


def _cells(row: Round, bare: Round | None, *, with_cpu: bool) -> list[str]:
    latency = [f"{value:.1f}" for value in (row.p50_ms, row.p99_ms, row.max_ms)]
    if not with_cpu:
        return ["-", *latency, *["-"] * (len(_GROUPS) + 2)]
    used = [f"{row.cpu_us[group]:.1f}" if group in row.cpu_us else "-" for group in _GROUPS]
    ratio = f"{row.paid_us / bare.paid_us:.2f}" if bare else "-"
    return [f"{row.per_second:,.0f}", *latency, *used, ratio, f"{row.cpu_us['router']:.1f}"]


def _line(title: str, cells: Iterable[str]) -> str:
    return f"{title:<{_TITLE}}" + "".join(f"{cell:>{_WIDTH + 1}}" for cell in cells)
