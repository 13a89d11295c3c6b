"""What do limits cost? Reserve and settle against a real Redis, side by side with none; signs of life of streams.

In this process alone, so that nothing else is in the number: CPU of the caller (what a worker and the recorder spend
together) and of Redis, for one request. Envoy, which costs the same with any limits, is not in it.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import msgspec
import psutil
import uvloop

from extproc import admission as admissions
from extproc import lifecycle_events
from extproc.access_log import AccessLog
from extproc.lifecycle import State, predecessors
from extproc.record import Admission
from extproc.settlement import Settler
from quota.applied import AppliedLimit, AppliedLimits
from quota.charges import Charges
from quota.limit import Limit, Unit, Window
from quota.redis import SHARDS, RedisReservations, key_of
from quota.reservation import Claim, Progress, Reservation, Settlement
from sidecar.clock import now_ms
from sidecar.embedded.redis import EmbeddedRedis
from sidecar.process import Child, Command
from sidecar.redis_client import server_pipe
from tests.bench.measurement import LoadFailed
from tests.support.values import admission
from wire.messages import StreamAccessLogsMessage

COUNTS = (1, 5, 20)
STREAMS = 5000
FLUSH_SECONDS = 5.0  # envoy/envoy.yaml, access_log_flush_interval
_ROUNDS = 5
_REQUESTS, _AT_ONCE = 2000, 16
_ENTRIES_A_MESSAGE = 50
_PERIODIC = 5  # envoy.data.accesslog.v3.AccessLogType
_PATIENT_SECONDS = 30.0
_MICRO = 1_000_000
_SLIDING = (Unit.REQUESTS, Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS)
_ASKED = Charges(requests=1, input_tokens=20, output_tokens=100, tokens=120, cost=3200)
_USED = Charges(requests=1, input_tokens=18, output_tokens=64, tokens=82, cost=2100)


class LimitCost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU microseconds for one request, reserve and settle together; what a loop without limits costs is taken off."""

    sidecar_us: float
    redis_us: float


class StreamCost(msgspec.Struct, frozen=True, kw_only=True):
    """CPU for the signs of life of all streams: microseconds an entry, and shares of one core, in percent."""

    streams: int
    entry_us: float
    sidecar_percent: float
    redis_percent: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """By number of limits, and the signs of life."""

    limits: dict[str, LimitCost]
    streams: StreamCost


@dataclass(frozen=True, slots=True)
class _Spent:
    own: float
    redis: float


async def measured(folder: Path) -> Measured:
    """Measure in a process of its own, whose event loop is the workers'."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.limits", str(folder)), stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await process.communicate()
    if process.returncode:
        raise LoadFailed("the load on the limits failed; see above")
    return msgspec.json.decode(answer, type=Measured)


async def measure(folder: Path) -> Measured:
    """Start a Redis of its own in the folder and measure."""
    redis = EmbeddedRedis(data=folder / "limits-redis", socket=folder / "limits.sock")
    child = await redis.start(_launch)
    try:
        async with contextlib.aclosing(server_pipe(redis.url, deadline=_PATIENT_SECONDS)) as pipe:
            for shard in range(SHARDS):
                await pipe.call("SET", key_of(shard, "epoch"), "bench")
            stage = _Stage(RedisReservations(pipe), psutil.Process(child.pid))
            limits = {str(count): await _of(stage, count) for count in COUNTS}
            return Measured(limits=limits, streams=await _streams(stage))
    finally:
        await child.stop()


@dataclass(frozen=True, slots=True)
class _Stage:
    reservations: RedisReservations
    redis: psutil.Process

    async def spent(self, work: Callable[[], Awaitable[object]]) -> _Spent:
        redis_before, own_before = _cpu(self.redis), time.process_time()
        await work()
        return _Spent(time.process_time() - own_before, _cpu(self.redis) - redis_before)


async def _of(stage: _Stage, count: int) -> LimitCost:
    limits = AppliedLimits(tuple(AppliedLimit(_limit(number), f"tenant:bench-{count}") for number in range(count)))
    await _requests(stage.reservations, limits, _AT_ONCE)  # the script is known, the connection open
    rounds = []
    for _ in range(_ROUNDS):
        off = await stage.spent(lambda: _requests(None, limits, _REQUESTS))
        on = await stage.spent(lambda: _requests(stage.reservations, limits, _REQUESTS))
        rounds.append(((on.own - off.own) / _REQUESTS * _MICRO, (on.redis - off.redis) / _REQUESTS * _MICRO))
    sidecar, redis = (sorted(each)[_ROUNDS // 2] for each in zip(*rounds, strict=True))
    return LimitCost(sidecar_us=sidecar, redis_us=redis)


def _limit(number: int) -> Limit:
    """Different ones, as a plan would have them; none ever refuses."""
    ceiling = 10**12
    if number % 5 == 4:
        return Limit(name=f"slots_{number}", unit=Unit.CONCURRENT_REQUESTS, window=Window.LEASE, ceiling=ceiling)
    if number % 5 == 3:
        return Limit(name=f"cost_{number}", unit=Unit.COST, window=Window.CALENDAR_MONTH, ceiling=ceiling)
    unit = _SLIDING[number % len(_SLIDING)]
    return Limit(name=f"{unit}_{number}", unit=unit, window=Window.SLIDING, ceiling=ceiling, seconds=60)


async def _requests(reservations: RedisReservations | None, limits: AppliedLimits, count: int) -> None:
    """So many requests, some at once; without reservations everything but the limits."""
    record, event = admissions.encode(admission()), lifecycle_events.encode(lifecycle_events.admitted(admission()))
    ended = Progress(stage=State.COMPLETED, after=predecessors(State.COMPLETED), event=event)

    async def client(requests: int) -> None:
        for _ in range(requests):
            claim = Claim(
                organization_id="org_bench",
                tenant_id="ten_bench",
                request_id=str(uuid4()),
                limits=limits,
                amounts=_ASKED,
                least=_ASKED,
                admission=record,
                lease_ms=admissions.LEASE_MS,
                stage=State.ADMITTED,
                event=event,
            )
            settlement = Settlement(
                organization_id="org_bench",
                tenant_id="ten_bench",
                request_id=claim.request_id,
                charges=_USED,
                ending=record,
                progress=ended,
                admission=record,
            )
            if reservations is None:
                await asyncio.sleep(0)
                continue
            assert isinstance(await reservations.reserve(claim), Reservation)
            assert await reservations.settle(settlement)

    await asyncio.gather(*(client(count // _AT_ONCE) for _ in range(_AT_ONCE)))


async def _streams(stage: _Stage) -> StreamCost:
    """One sign of life of each of many streams, as Envoy sends them, through the whole access-log service."""
    ones = [admission(request_id=str(uuid4()), organization_id=f"org_{number % 50}") for number in range(STREAMS)]
    limits = AppliedLimits((AppliedLimit(_limit(0), "tenant:a"), AppliedLimit(_limit(4), "tenant:a")))
    await asyncio.gather(*(stage.reservations.reserve(_claim(one, limits)) for one in ones))
    messages = [_entries(ones[at : at + _ENTRIES_A_MESSAGE]) for at in range(0, STREAMS, _ENTRIES_A_MESSAGE)]
    settler = Settler(stage.reservations, now=time.monotonic, now_ms=now_ms, observe=lambda *_: None)
    service = AccessLog(stage.reservations, settler, observe_error=_fail)
    found = [await stage.spent(lambda: service.follow(_Said(iter(messages)))) for _ in range(_ROUNDS)]
    own, redis = (sorted(each)[_ROUNDS // 2] for each in (([one.own for one in found]), [one.redis for one in found]))
    return StreamCost(
        streams=STREAMS,
        entry_us=own / STREAMS * _MICRO,
        sidecar_percent=own / FLUSH_SECONDS * 100,
        redis_percent=redis / FLUSH_SECONDS * 100,
    )


def _claim(one: Admission, limits: AppliedLimits) -> Claim:
    return Claim(
        organization_id=one.organization_id,
        tenant_id=one.tenant_id,
        request_id=one.request_id,
        limits=limits,
        amounts=_ASKED,
        least=_ASKED,
        admission=admissions.encode(one),
        lease_ms=600_000,
    )


def _entries(ones: list[Admission]) -> bytes:
    message = StreamAccessLogsMessage()
    for one in ones:
        entry = message.http_logs.log_entry.add()
        common = entry.common_properties
        common.access_log_type = _PERIODIC
        fields = common.metadata.filter_metadata["gateway.admission"].fields
        fields["record"].string_value = admissions.encode(one).decode()
        progress = common.metadata.filter_metadata["gateway.stream"].fields
        progress["events"].number_value, progress["bytes"].number_value = 12, 2400
        entry.response.response_body_bytes = 2400
    return bytes(message.SerializeToString())


@dataclass(slots=True)
class _Said:
    """A stream that says what it was given."""

    messages: Iterator[bytes]

    async def read(self) -> bytes | None:
        return next(self.messages, None)

    def write(self, message: bytes) -> None:
        raise AssertionError(message)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _launch(command: Command) -> Child:
    return await Child.start(command, lambda *_: None)


def _fail(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(measure(Path(sys.argv[1])))))
