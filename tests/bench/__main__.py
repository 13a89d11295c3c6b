"""What does the gateway cost beside a bare Envoy? Measures, prints one table, writes bench.json, leaves nothing behind.

`python -m tests.bench [--seconds N] [--soak]
[--only transports|limits|json|alone|check|check_million|streams|disconnect|held]`.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from sidecar.listening import Transport
from sidecar.process import ChildExitedError, StartError
from tests.bench import credentials, held_streams, limits, machine, revocation, transports
from tests.bench.job import Kind
from tests.bench.measurement import (
    CHECK_VARIANTS,
    JSON_VARIANTS,
    STREAM_VARIANTS,
    Bench,
    Load,
    LoadFailed,
    Variant,
)
from tests.bench.report import Results, budget_lines, budgets, table
from tests.bench.stage import ENVOY_THREADS, WORKERS, Stage, opened_stage

ROUNDS = 3
SECONDS = 4.0
CHECK_SECONDS = ALONE_SECONDS = 2.0
LONGEST_SECONDS = 420.0
IDLE_SECONDS = 4.0
EVENTS_PER_SECOND = 92  # of one stream, as the stand-in Router paces it
OUTPUT = Path("bench.json")
VARIANTS: Mapping[Kind, Mapping[str, Variant]] = {
    "json": JSON_VARIANTS,
    "alone": JSON_VARIANTS,
    "streams": STREAM_VARIANTS,
    "disconnect": STREAM_VARIANTS,
    "check": CHECK_VARIANTS,
    "check_million": CHECK_VARIANTS,
}


class LedgerMismatch(Exception):
    """Requests went through the gateway and are not in its ledger, or are there twice."""


def loads(seconds: float) -> dict[Kind, Load]:
    events = max(20, round(seconds * EVENTS_PER_SECOND))
    return {
        "json": Load(kind="json", connections=16, seconds=seconds),
        "alone": Load(kind="alone", connections=1, seconds=min(seconds, ALONE_SECONDS)),
        "check": Load(kind="check", connections=16, seconds=min(seconds, CHECK_SECONDS)),
        "check_million": Load(kind="check_million", connections=16, seconds=min(seconds, CHECK_SECONDS)),
        "streams": Load(kind="streams", connections=40, seconds=seconds, events=events),
        # Never played to their end: the client leaves long before.
        "disconnect": Load(kind="disconnect", connections=50, seconds=seconds, events=2000),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured, beside the loads: the limits, and streams that are held, for ten minutes with `soak`.

    The transports are measured before all servers of the stage start, on their own.
    """

    loads: Mapping[Kind, Load]
    transports: bool
    limits: bool
    held: bool
    soak: bool

    @property
    def on_stage(self) -> bool:
        """Whether anything is to be measured that needs the stage."""
        return bool(self.loads) or self.limits or self.held

    @property
    def compared(self) -> "Plan | None":
        """What is measured once more on grpcio's server, on servers of its own: JSON requests."""
        loads = {kind: load for kind, load in self.loads.items() if VARIANTS[kind] is JSON_VARIANTS}
        return Plan(loads=loads, transports=False, limits=False, held=False, soak=False) if loads else None

    @property
    def longest_seconds(self) -> float:
        return LONGEST_SECONDS + (held_streams.SOAK_SECONDS if self.soak else 0.0)


async def run(stage: Stage, plan: Plan, results: Results) -> Results:
    bench = Bench(stage)
    if plan.limits:
        _say("limits")
        results.limits = await limits.measured(stage.folder)
    if plan.held:
        _say("held streams")
        results.held = await held_streams.measure(stage, soak=plan.soak)
        bench.sent += held_streams.STREAMS
    for kind, load in plan.loads.items():
        if kind == "check":
            _say("revocation")
            results.revocations = await revocation.measure(stage)
        if kind == "check_million":
            _say("a million keys")
            await credentials.fill(stage)
        await _measure_rounds(bench, results, load, VARIANTS[kind])
    results.idle = await bench.idle(IDLE_SECONDS)
    await stage.settled()
    if (rows := await stage.rows()) != bench.sent:
        raise LedgerMismatch(f"{bench.sent} requests went through the gateway, and the ledger has {rows} rows")
    return results


async def _measure_rounds(bench: Bench, results: Results, load: Load, variants: Mapping[str, Variant]) -> None:
    """Round after round through all variants, so that a noisy minute hits all alike."""
    for number in range(1 if load.kind == "disconnect" else ROUNDS):
        for name, variant in variants.items():
            _say(f"{load.kind}, round {number + 1}: {variant.title}")
            results.add(load.kind, name, await bench.measure(load, variant))


async def benchmark(plan: Plan) -> Results:
    """Measure everything that is planned, each on servers that are gone afterwards."""
    results = Results()
    if plan.transports:
        _say("transports")
        async with asyncio.timeout(transports.LONGEST_SECONDS):
            results.transports = await transports.measured()
    if plan.on_stage:
        await _on_stage(plan, results, Transport.LEAN)
    if plan.compared:
        again = Results()
        await _on_stage(plan.compared, again, Transport.GRPCIO)
        results.rounds |= {f"{kind}_grpcio": rounds for kind, rounds in again.rounds.items()}
    return results


async def _on_stage(plan: Plan, results: Results, transport: Transport) -> Results:
    """Measure on the stage; a server that dies ends it."""
    async with asyncio.timeout(plan.longest_seconds), opened_stage(transport) as stage:
        running = asyncio.create_task(run(stage, plan, results))
        try:
            ends: set[asyncio.Future[Any]] = {running, stage.fleet.died}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if stage.fleet.died.done():
                raise ChildExitedError(stage.fleet.died.result())
            return running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _until_signalled(plan: Plan) -> Results:
    """As `benchmark`; SIGTERM and a closed terminal end it in order, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await benchmark(plan)


def main() -> int:
    options = _options()
    facts, began = machine.facts(), time.monotonic()
    planned = {kind: load for kind, load in loads(options.seconds).items() if options.only in (None, kind)}
    plan = Plan(
        loads=planned,
        transports=options.only in (None, "transports"),
        limits=options.only in (None, "json", "limits"),
        held=options.soak or options.only in (None, "held"),
        soak=options.soak,
    )
    try:
        results = asyncio.run(_until_signalled(plan))
    except (LoadFailed, LedgerMismatch, StartError, TimeoutError) as error:
        sys.stderr.write(f"bench: {error or 'it took too long'}\n")
        return 1
    except asyncio.CancelledError:
        sys.stderr.write("bench: ended before its time\n")
        return 130
    took = time.monotonic() - began
    _write(facts, planned, results)
    parts = (table(results), budget_lines(budgets(results)), _footer(facts, took))
    sys.stdout.write("\n\n".join(part for part in parts if part) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What does the gateway cost?")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of one measurement")
    parser.add_argument(
        "--only", choices=(*get_args(Kind), "transports", "limits", "held"), help="measure one kind of load"
    )
    parser.add_argument("--soak", action="store_true", help="hold streams for ten minutes")
    return parser.parse_args()


def _write(facts: Mapping[str, Any], planned: Mapping[Kind, Load], results: Results) -> None:
    document = {
        "machine": facts,
        "parameters": {"rounds": ROUNDS, "workers": WORKERS, "envoy_threads": ENVOY_THREADS, "loads": planned},
        "budgets": budgets(results),
        **results.as_json(),
    }
    OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _footer(facts: Mapping[str, Any], took: float) -> str:
    return (
        f"Medians of {ROUNDS} rounds on {facts['cores']} cores ({facts['cpu']}), {facts['kernel']}, "
        f"Python {facts['python']}; load average before: {facts['load_average_before']}; "
        f"took {took:.0f} s; all numbers: {OUTPUT}"
    )


def _say(progress: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"bench: {progress}\n")


if __name__ == "__main__":
    sys.exit(main())
