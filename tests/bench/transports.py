"""What does a call of Envoy cost on each of our gRPC servers? Check, an exchange of ext_proc, and both for one request.

One Envoy and all servers run from the beginning to the end, and are measured in turns. Handlers only parse and answer
(transport_server.py), so that what is compared is the transport.
"""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import msgspec
import psutil

from sidecar.embedded.envoy_server import envoy_command
from sidecar.embedded.fleet import Fleet
from sidecar.embedded.ports import free_port, http_status
from sidecar.process import Child, ChildExitedError, Command, wait_until_ready
from tests.bench import cpu
from tests.bench.connection import WrongAnswer
from tests.bench.measurement import LoadFailed
from tests.bench.stage import ENVOY_THREADS, READY_SECONDS
from tests.bench.transport_envoy import Calls, Listener, rendered
from tests.bench.transport_load import PlainLoad
from tests.bench.transport_server import PHASES, SERVERS

CONNECTIONS = 16
ROUNDS = 3
SECONDS, ALONE_SECONDS, WARM_SECONDS = 1.0, 0.3, 0.1
# A run takes a third of it.
LONGEST_SECONDS = 180.0
NO_CALLS = "none"
CALLS: Mapping[str, Calls] = {
    NO_CALLS: Calls(title="Envoy answers, no call"),
    "check": Calls(title="Check", check=True),
    "unique": Calls(title="Check, unique metadata", check=True, unique=True),
    "exchange": Calls(title="ext_proc, 4 pairs", exchange=True),
    "both": Calls(title="Check and ext_proc", check=True, exchange=True),
}
_MICRO = 1_000_000
_OK = 200
_SWITCHES = ("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:")


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one request, whatever it calls. CPU in microseconds."""

    per_second: float
    envoy_us: float
    server_us: float
    switches: float
    """Context switches of the server's threads; those of a thread that ended meanwhile are not seen."""
    p50_ms: float
    alone_p50_ms: float
    """With one connection only: nothing waits for anything else."""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Of each round, and the median of each number."""

    median: Cost
    rounds: list[Cost]


class Transports(msgspec.Struct, frozen=True, kw_only=True):
    """By kind of calls and by server, of the same run."""

    bare: Costs
    calls: dict[str, dict[str, Costs]]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was used so far."""

    cpu: Mapping[str, float]
    switches: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    per_second: float
    envoy_us: float
    server_us: float
    switches: float
    p50_ms: float


Place = tuple[str, str | None]
"""A kind of calls, and the server that gets them."""


def _places() -> Iterable[Place]:
    """Servers one after the other, so that a noisy second hits none of them alone."""
    yield NO_CALLS, None
    for kind in CALLS:
        if kind != NO_CALLS:
            yield from ((kind, server) for server in SERVERS)


@dataclass(slots=True, kw_only=True)
class _Stage:
    """The running Envoy and its servers."""

    folder: Path
    fleet: Fleet
    children: dict[str, Child] = field(default_factory=dict)
    listeners: dict[Place, Listener] = field(
        default_factory=lambda: {
            (kind, server): Listener(
                name=f"{kind}-{server}" if server else kind, port=free_port(), calls=CALLS[kind], server=server
            )
            for kind, server in _places()
        }
    )

    @property
    def admin(self) -> Path:
        return self.folder / "admin.sock"

    async def start(self) -> None:
        """Start all, and wait until every listener answers."""
        sockets = {name: self.folder / f"{name}.sock" for name in SERVERS}
        for name, path in sockets.items():
            argv = (sys.executable, "-m", "tests.bench.transport_server", name, str(path))
            self.children[name] = await self.fleet.launch(Command(name=name, argv=argv))
        config = self.folder / "envoy.yaml"
        config.write_text(rendered(self.listeners, sockets, admin=self.admin))
        envoy = self.children["envoy"] = await self.fleet.launch(envoy_command(config, concurrency=ENVOY_THREADS))
        for listener in self.listeners.values():

            async def answers(port: int = listener.port) -> bool:
                return await http_status(port, "/") == _OK

            await wait_until_ready(envoy, answers, seconds=READY_SECONDS)

    def reading(self, server: str | None) -> _Reading:
        roots = {"envoy": self.children["envoy"].pid}
        if server is not None:
            roots["server"] = self.children[server].pid
        used = cpu.read({name: cpu.Group((pid,)) for name, pid in roots.items()})
        return _Reading(used, _switches(roots["server"]) if server is not None else {})

    async def messages(self, listener: Listener) -> int:
        """How many messages Envoy has sent to ext_proc for this listener, by its own count."""
        name = f"http.{listener.name}.ext_proc.stream_msgs_sent"
        reader, writer = await asyncio.open_unix_connection(self.admin)
        writer.write(f"GET /stats?filter={name} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        return int(answer.partition(f"{name}: ")[2].split()[0])


async def measured() -> Transports:
    """Measure in some 55 seconds, on servers that are gone afterwards; raises LoadFailed and StartError."""
    async with _opened() as stage:
        try:
            return await _measure(stage)
        except (WrongAnswer, OSError) as error:
            if stage.fleet.died.done():
                raise ChildExitedError(stage.fleet.died.result()) from error
            raise LoadFailed(f"the load on the transports failed: {error}") from error


async def _measure(stage: _Stage) -> Transports:
    rounds: dict[Place, list[Cost]] = {place: [] for place in stage.listeners}
    for _ in range(ROUNDS):
        for place, listener in stage.listeners.items():
            busy = await _sample(stage, listener, CONNECTIONS, SECONDS)
            alone = await _sample(stage, listener, 1, ALONE_SECONDS)
            rounds[place].append(_cost(busy, alone))
    found = {place: Costs(median=_medians(costs), rounds=costs) for place, costs in rounds.items()}
    calls = {kind: {server: found[kind, server] for server in SERVERS} for kind in CALLS if kind != NO_CALLS}
    return Transports(bare=found[NO_CALLS, None], calls=calls)


async def _sample(stage: _Stage, listener: Listener, connections: int, seconds: float) -> _Sample:
    load = PlainLoad(listener.port, connections)
    try:
        await asyncio.to_thread(load.run, WARM_SECONDS)
        shown, warm = await _shown(stage, listener), load.passed
        before = stage.reading(listener.server)
        outcome = await asyncio.to_thread(load.run, seconds)
        after = stage.reading(listener.server)
        asked = load.passed - warm
        if await _shown(stage, listener) - shown != asked * len(PHASES) * listener.calls.exchange:
            raise WrongAnswer(f"{listener.name}: Envoy did not send {len(PHASES)} messages for each request")
    finally:
        load.close()
    used = cpu.spent(before.cpu, after.cpu)
    switches = sum(count - before.switches.get(thread, 0) for thread, count in after.switches.items())
    return _Sample(
        per_second=outcome.count / outcome.seconds,
        envoy_us=used["envoy"] / outcome.count * _MICRO,
        server_us=used.get("server", 0.0) / outcome.count * _MICRO,
        switches=switches / outcome.count,
        p50_ms=median(outcome.latencies_ms),
    )


async def _shown(stage: _Stage, listener: Listener) -> int:
    return await stage.messages(listener) if listener.calls.exchange else 0


def _cost(busy: _Sample, alone: _Sample) -> Cost:
    return Cost(
        per_second=busy.per_second,
        envoy_us=busy.envoy_us,
        server_us=busy.server_us,
        switches=busy.switches,
        p50_ms=busy.p50_ms,
        alone_p50_ms=alone.p50_ms,
    )


def _medians(costs: Sequence[Cost]) -> Cost:
    names = Cost.__struct_fields__
    return Cost(**{name: median(getattr(one, name) for one in costs) for name in names})


def _switches(pid: int) -> Mapping[int, int]:
    """Context switches so far, of each thread; where the kernel has no such files, of all together."""
    if sys.platform != "linux":
        return {0: sum(psutil.Process(pid).num_ctx_switches())}
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            lines = (thread / "status").read_text().splitlines()
            found[int(thread.name)] = sum(int(line.split()[1]) for line in lines if line.startswith(_SWITCHES))
    return found


@contextlib.asynccontextmanager
async def _opened() -> AsyncIterator[_Stage]:
    folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
    fleet = Fleet(lambda *_: None, stop_order=("envoy", *SERVERS))
    stage = _Stage(folder=folder, fleet=fleet)
    try:
        await stage.start()
        yield stage
    finally:
        await fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)
