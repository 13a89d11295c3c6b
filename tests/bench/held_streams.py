"""What does a stream hold while hardly anything comes? 5,000 at once, and the memory of the processes that carry them.

They are opened a few at a time, held, and left all at once: every one must then be in the ledger, and no slot be held.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from statistics import linear_regression

import msgspec
import psutil
from redis.asyncio import Redis

from authz.principal import Metering
from tests.bench.connection import Connection, Group, request_bytes
from tests.bench.cpu import Group as Processes
from tests.bench.cpu import processes
from tests.bench.measurement import LoadFailed
from tests.bench.stage import GATEWAY, Stage
from tests.bench.stream_load import BODY, StreamReader

STREAMS = 5000
SOAK_SECONDS = 600.0
_HOLD_SECONDS = 10.0
# The first ones make the pools and caches that all share.
_WARM = 200
_SPACING_SECONDS = 0.01
_SAMPLE_SECONDS = 10.0
# Each stream says something in every few periodic reports of Envoy.
_STEERING = {"x-demo-events": "200", "x-demo-interval-ms": "12000"}
_OPEN_SECONDS = 180.0
_FORGET_SECONDS, _LOOK_SECONDS = 60.0, 0.1
_KIB = 1024


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory while so many streams were held for so long; of each kind of process all together.

    `kib_a_stream` is what each of them added, `growth_percent` the trend over the time they were held, as a share of
    what there was at its beginning.
    """

    streams: int
    seconds: float
    mib: dict[str, float]
    kib_a_stream: dict[str, float]
    growth_percent: dict[str, float]
    forgotten_seconds: float
    """From the moment that all clients left until everything was in the ledger."""


async def measure(stage: Stage, *, soak: bool) -> Held:
    """Open, hold and leave; what was sent is `STREAMS` requests."""
    seconds = SOAK_SECONDS if soak else _HOLD_SECONDS
    groups = _groups(stage)
    connections = await asyncio.to_thread(
        Group, stage.ports[GATEWAY], str(stage.certificates.folder / "ca.pem"), STREAMS
    )
    try:
        request = request_bytes(stage.keys[Metering.NATIVE], BODY, _STEERING)
        await asyncio.to_thread(_open, connections, connections.connections[:_WARM], request)
        before = _memory(groups)
        await asyncio.to_thread(_open, connections, connections.connections[_WARM:], request)
        samples = await _samples(groups, seconds)
        if (held := await _leases(stage)) != STREAMS:
            raise LoadFailed(f"{held} leases are held where {STREAMS} streams run")
    finally:
        connections.close()
    left = time.monotonic()
    async with asyncio.timeout(_FORGET_SECONDS):
        while await _leases(stage):  # noqa: ASYNC110 - what is asked is another process
            await asyncio.sleep(_LOOK_SECONDS)
    await stage.settled()
    return _summary(before, samples, seconds, time.monotonic() - left)


def _groups(stage: Stage) -> Mapping[str, Processes]:
    sidecar = stage.groups(GATEWAY)["sidecar"]
    modules = {"workers": "sidecar.worker", "recorder": "sidecar.recorder"}
    return {
        **{name: Processes(sidecar.roots, module) for name, module in modules.items()},
        "envoy": stage.groups(GATEWAY)["envoy"],
        "redis": stage.groups(GATEWAY)["redis"],
    }


def _open(group: Group, fresh: list[Connection], request: bytes) -> None:
    """Begin a stream on each, and read all until each has its first event."""
    waiting, silent = list(fresh), {connection: StreamReader() for connection in fresh}
    next_start = time.monotonic()
    deadline = next_start + _OPEN_SECONDS
    while waiting or silent:
        if time.monotonic() > deadline:
            raise LoadFailed(f"{len(silent)} of {len(fresh)} streams had no event in {_OPEN_SECONDS:g} s")
        if waiting and time.monotonic() >= next_start:
            waiting.pop().send(request)
            next_start += _SPACING_SECONDS
        for connection in group.readable(_SPACING_SECONDS):
            data = connection.receive()
            reader = silent.get(connection)
            if reader is not None:
                reader.feed(data)
                if reader.events:
                    del silent[connection]


async def _samples(groups: Mapping[str, Processes], seconds: float) -> list[tuple[float, dict[str, int]]]:
    """Memory now and then; what comes meanwhile waits in the sockets of the clients."""
    began = time.monotonic()
    samples: list[tuple[float, dict[str, int]]] = []
    while (passed := time.monotonic() - began) < seconds or len(samples) < 2:
        samples.append((passed, _memory(groups)))
        await asyncio.sleep(min(_SAMPLE_SECONDS, seconds / 2))
    return samples


def _memory(groups: Mapping[str, Processes]) -> dict[str, int]:
    """Resident bytes of each group."""
    return {
        name: sum(psutil.Process(pid).memory_info().rss for pid in processes(group)) for name, group in groups.items()
    }


async def _leases(stage: Stage) -> int:
    async with Redis.from_url(stage.redis.url) as redis:
        return sum([int(await redis.zcard(key)) async for key in redis.scan_iter("igw1:*:leases")])


def _summary(before: dict[str, int], samples: list[tuple[float, dict[str, int]]], seconds: float, left: float) -> Held:
    first, last = samples[0][1], samples[-1][1]

    def each(number: Callable[[str], float]) -> dict[str, float]:
        return {name: round(number(name), 2) for name in last}

    def growth(name: str) -> float:
        slope = linear_regression([at for at, _ in samples], [memory[name] for _, memory in samples]).slope
        return 100 * slope * seconds / first[name]

    return Held(
        streams=STREAMS,
        seconds=seconds,
        mib=each(lambda name: last[name] / _KIB / _KIB),
        kib_a_stream=each(lambda name: (first[name] - before[name]) / (STREAMS - _WARM) / _KIB),
        growth_percent=each(growth),
        forgotten_seconds=round(left, 2),
    )
