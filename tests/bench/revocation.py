"""How soon is a revoked key refused? By every worker, from the commit on, with and without its announcement."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any, TypeAlias

import grpc
import msgspec

from authz import api_key
from authz.principal import Metering
from sidecar.sockets import worker_socket
from store import api_keys
from store.database import Pool, opened
from tests.bench.stage import GATEWAY, WORKERS, Stage
from tests.support.trail import trail
from wire.messages import CheckRequest, CheckResponse

ROUNDS = 50
SILENT_KEYS = 10
_MS = 1000
_CHECK = "/envoy.service.auth.v3.Authorization/Check"
_WARM_SECONDS = 0.05
_LONGEST_SECONDS = 10.0

Check: TypeAlias = Any
"""A gRPC method: bytes to bytes."""


class Revocations(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from the commit to a worker's first refusal."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    count: int


@dataclass(frozen=True, slots=True)
class _Key:
    id: str
    request: bytes


async def measure(stage: Stage) -> dict[str, Revocations]:
    """Of keys that are in use on all workers all the time."""
    async with opened(stage.postgres.dsn()) as pool, _workers(stage) as workers:
        announced = [await _revoked(stage, pool, workers, 1) for _ in range(ROUNDS)]
        await pool.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_announce")
        silent = await _revoked(stage, pool, workers, SILENT_KEYS)
        await pool.execute("ALTER TABLE api_keys ENABLE TRIGGER api_keys_announce")
    return {
        "announced": _summary([ms for one in announced for ms in one]),
        "not announced": _summary(silent),
    }


@asynccontextmanager
async def _workers(stage: Stage) -> AsyncIterator[list[Check]]:
    channels = [
        grpc.aio.insecure_channel(f"unix:{worker_socket(stage.folder / GATEWAY, index)}") for index in range(WORKERS)
    ]
    try:
        yield [channel.unary_unary(_CHECK) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


async def _revoked(stage: Stage, pool: Pool, workers: list[Check], number: int) -> list[float]:
    keys = [await _made(stage, pool) for _ in range(number)]
    committed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    watching = [asyncio.create_task(_watch(worker, key, committed)) for worker in workers for key in keys]
    await asyncio.sleep(_WARM_SECONDS)
    now, by = datetime.now(UTC), trail(stage.pepper)
    await asyncio.gather(*(api_keys.revoke(pool, key.id, now=now, trail=by) for key in keys))
    committed.set_result(time.perf_counter())
    async with asyncio.timeout(_LONGEST_SECONDS):
        return list(await asyncio.gather(*watching))


async def _watch(worker: Check, key: _Key, committed: "asyncio.Future[float]") -> float:
    """Use the key until it is refused; milliseconds from the commit until then, 0 when we hear of the commit later."""
    while True:
        answer = CheckResponse.FromString(await worker(key.request))
        if answer.status.code:
            return max(0.0, (time.perf_counter() - await committed) * _MS)


async def _made(stage: Stage, pool: Pool) -> _Key:
    key = api_key.generate("bench")
    new = api_keys.NewKey(key=key, tenant_id=stage.tenants[Metering.NATIVE], name="revoked")
    await api_keys.create(pool, new, pepper=stage.pepper.encode(), trail=trail(stage.pepper))
    request = CheckRequest()
    http = request.attributes.request.http
    http.method, http.path = "GET", "/v1/models"
    http.headers["authorization"] = f"Bearer {key.text}"
    return _Key(key.id, bytes(request.SerializeToString()))


def _summary(found: list[float]) -> Revocations:
    percentiles = quantiles(found, n=100, method="inclusive")
    return Revocations(p50_ms=percentiles[49], p99_ms=percentiles[98], max_ms=max(found), count=len(found))
