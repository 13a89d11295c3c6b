"""What did one load cost? Load on one variant, and the CPU of its servers from the first request to the last row."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import msgspec

from authz.principal import Metering
from tests.bench import cpu
from tests.bench.job import Job, Kind, Outcome
from tests.bench.stage import BARE, FLOOR, GATEWAY, Stage

# Beyond the time that the load is asked to take: start, warm-up, the last answers.
_MARGIN_SECONDS = 60.0
_LONGEST_LINE = 64 * 1024 * 1024
_MICRO = 1_000_000
# What is paid for one request or event. The Router is the stand-in's and no part of the gateway.
CHECK_KINDS = ("check", "check_million")
PAID = ("envoy", "sidecar", "redis", "postgres")


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table: what is called with whose key."""

    title: str
    listener: str
    metering: Metering = Metering.NATIVE
    credential: str | None = None
    """Which of the stage's credentials is shown; None: the API key of the metering's tenant."""


JSON_VARIANTS = {
    BARE: Variant("bare Envoy", BARE),
    FLOOR: Variant("all filters, allow-all service", FLOOR),
    GATEWAY: Variant("gateway", GATEWAY),
}
CHECK_VARIANTS = {
    FLOOR: Variant("all filters, allow-all service", FLOOR),
    "key": Variant("gateway, API key", GATEWAY),
    "jwt": Variant("gateway, JWT", GATEWAY, credential="jwt"),
    "session": Variant("gateway, session", GATEWAY, credential="session"),
}
STREAM_VARIANTS = {
    BARE: Variant("bare Envoy", BARE),
    "native": Variant("gateway, native metering", GATEWAY),
    "inline": Variant("gateway, inline metering", GATEWAY, Metering.INLINE),
}


class LoadFailed(Exception):
    """The load generator gave up: mostly an answer was wrong, and it says which."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement, or the medians of several. `cpu_us` is by group, for one request or event."""

    count: float
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: dict[str, float]

    @property
    def paid_us(self) -> float:
        """CPU of everything but the Router."""
        return sum(self.cpu_us.get(group, 0.0) for group in PAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each variant is asked to bear."""

    kind: Kind
    connections: int
    seconds: float
    warm_seconds: float = 0.7
    interval_ms: float = 9.0  # the stand-in rests at least as long: a little less than 100 events a second
    events: int = 0


class Bench:
    """Measures on one stage, and counts what it sent through the gateway."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.sent = 0

    async def measure(self, load: Load, variant: Variant) -> Round:
        groups = self._stage.groups(variant.listener)
        async with _generator(self._job(load, variant)) as generator:
            await generator.ready()
            await self._settled(variant)  # the warm-up's rows are not to be paid for by what is measured
            before = cpu.read(groups)
            outcome = await generator.run()
            await self._settled(variant)
            used = cpu.spent(before, cpu.read(groups))
        if variant.listener == GATEWAY and load.kind not in CHECK_KINDS:
            self.sent += outcome.passed
        return _round(outcome, used)

    async def idle(self, seconds: float) -> dict[str, float]:
        """CPU milliseconds a second of each part when nobody calls."""
        groups = self._stage.groups(GATEWAY)
        before = cpu.read(groups)
        await asyncio.sleep(seconds)
        return {name: used / seconds * 1000 for name, used in cpu.spent(before, cpu.read(groups)).items()}

    async def _settled(self, variant: Variant) -> None:
        if variant.listener == GATEWAY:
            await self._stage.settled()

    def _job(self, load: Load, variant: Variant) -> Job:
        return Job(
            kind=load.kind,
            port=self._stage.ports[variant.listener],
            ca=str(self._stage.certificates.ca),
            key=self._stage.credentials[variant.credential]
            if variant.credential
            else self._stage.keys[variant.metering],
            connections=load.connections,
            seconds=load.seconds,
            warm_seconds=load.warm_seconds,
            router_port=self._stage.router_port,
            interval_ms=load.interval_ms,
            events=load.events,
        )


def medians(rounds: Sequence[Round]) -> Round:
    """The median of each number."""
    groups = rounds[0].cpu_us
    return Round(
        count=median(one.count for one in rounds),
        seconds=median(one.seconds for one in rounds),
        per_second=median(one.per_second for one in rounds),
        p50_ms=median(one.p50_ms for one in rounds),
        p99_ms=median(one.p99_ms for one in rounds),
        max_ms=median(one.max_ms for one in rounds),
        cpu_us={group: median(one.cpu_us[group] for one in rounds) for group in groups},
    )


def _round(outcome: Outcome, used: dict[str, float]) -> Round:
    percentiles = quantiles(outcome.latencies_ms, n=100, method="inclusive")
    return Round(
        count=outcome.count,
        seconds=outcome.seconds,
        per_second=outcome.count / outcome.seconds,
        p50_ms=percentiles[49],
        p99_ms=percentiles[98],
        max_ms=max(outcome.latencies_ms),
        cpu_us={group: seconds / outcome.count * _MICRO for group, seconds in used.items()},
    )


class _Generator:
    """A load generator's process."""

    def __init__(self, process: asyncio.subprocess.Process, job: Job) -> None:
        self._process = process
        self._job = job

    async def ready(self) -> None:
        """Connected and warm."""
        self._write(msgspec.json.encode(self._job))
        await self._line()

    async def run(self) -> Outcome:
        self._write(b"go")
        return msgspec.json.decode(await self._line(), type=Outcome)

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(self._job.seconds + _MARGIN_SECONDS):
            line = await self._process.stdout.readline()
        if not line:
            raise LoadFailed(f"the {self._job.kind} load failed; see above")
        return line


@contextlib.asynccontextmanager
async def _generator(job: Job) -> AsyncIterator[_Generator]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    try:
        yield _Generator(process, job)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
