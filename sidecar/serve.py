"""What is `inference-gateway serve`? Supervises workers, recorder, ledger writer and control, and says how they are."""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial

import asyncpg
import grpc
import uvicorn
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from control import operations
from control.operations import Probe
from sidecar import logs, redis_client
from sidecar.lifetime import termination
from sidecar.logs import Logger
from sidecar.process import Child, Command, Exit, keep_running
from sidecar.settings import Settings
from sidecar.transports import probe_address
from store.database import DatabaseOutage, connect
from transport.address import Address

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
_OTHERS = {"recorder": "sidecar.recorder", "ledger": "sidecar.ledger_writer", "control": "sidecar.controller"}
_PROBE_SECONDS = 1.0
_STOP_MARGIN_SECONDS = 4.0


async def serve(settings: Settings, logger: Logger) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    settings.socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    terminated = termination()
    with _metrics_folder() as folder:
        supervisors = [
            asyncio.create_task(_supervise(command, logger)) for command in _commands(settings, {METRICS_DIR: folder})
        ]
        server = _OperationsServer(settings, folder)
        watched = asyncio.create_task(server.serve())
        ended = asyncio.create_task(terminated.wait())
        await asyncio.wait({watched, ended}, return_when=asyncio.FIRST_COMPLETED)
        # While the workers drain, the recorder and the ledger still take in how their last requests end.
        for group in (supervisors[: settings.workers], supervisors[settings.workers :]):
            for supervisor in group:
                supervisor.cancel()
            await asyncio.gather(*group, return_exceptions=True)
        server.should_exit = True
        ended.cancel()
        await watched
    return 0 if terminated.is_set() else 1


def _commands(settings: Settings, env: Mapping[str, str]) -> list[Command]:
    stop_seconds = settings.drain_seconds + _STOP_MARGIN_SECONDS
    workers = [
        Command(
            name=f"worker-{index}",
            argv=(sys.executable, "-m", "sidecar.worker", str(index)),
            env=env,
            stop_seconds=stop_seconds,
        )
        for index in range(settings.workers)
    ]
    others = [
        Command(name=name, argv=(sys.executable, "-m", module), env=env, stop_seconds=stop_seconds)
        for name, module in _OTHERS.items()
    ]
    return [*workers, *others]


async def _supervise(command: Command, logger: Logger) -> None:
    pid = 0

    def on_start(child: Child) -> None:
        nonlocal pid
        pid = child.pid

    def on_exit(ended: Exit) -> None:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        logger.warning("restarting", action="process_ended", name=ended.name, exit_code=ended.code)

    await keep_running(command, sink=_pass_on, on_exit=on_exit, on_start=on_start)


def _pass_on(_: str, line: str) -> None:
    """A child's line is a log line already."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _metrics_folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="inference-gateway-metrics-") as folder:
        os.environ[METRICS_DIR] = folder
        yield folder


class _OperationsServer(uvicorn.Server):
    """uvicorn, whose signal handling is left to us."""

    def __init__(self, settings: Settings, metrics_folder: str) -> None:
        application = operations.application(_probes(settings), partial(_exposition, metrics_folder))
        super().__init__(
            uvicorn.Config(
                application,
                host=settings.ops_host,
                port=settings.ops_port,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _exposition(folder: str) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _probes(settings: Settings) -> dict[str, Probe]:
    addresses = [probe_address(settings, index) for index in range(settings.workers)]
    return {
        "workers": partial(_any_worker_serves, addresses),
        "redis": partial(redis_client.answers, settings, seconds=_PROBE_SECONDS),
        "postgres": partial(_postgres_answers, settings.database_url.get_secret_value()),
    }


async def _any_worker_serves(addresses: list[Address]) -> bool:
    return any(await asyncio.gather(*(_worker_serves(address) for address in addresses)))


async def _worker_serves(address: Address) -> bool:
    # A proxy that the environment names is for the way out, not for what stands here.
    async with grpc.aio.insecure_channel(str(address), options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            answer = await check(HealthCheckRequest(), timeout=_PROBE_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == HealthCheckResponse.SERVING)


async def _postgres_answers(dsn: str) -> bool:
    try:
        connection = await connect(dsn, timeout=_PROBE_SECONDS)
    except DatabaseOutage:
        return False
    try:
        return bool(await connection.fetchval("SELECT true", timeout=_PROBE_SECONDS))
    except (OSError, asyncpg.PostgresError):
        return False
    finally:
        connection.terminate()


def main() -> int:
    """Read the settings and serve."""
    settings = Settings()
    return asyncio.run(serve(settings, logs.configure(settings.log_format, process="serve")))
