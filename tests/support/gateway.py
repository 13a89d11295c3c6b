"""The whole gateway for the tests: real Envoy, Redis, Postgres, sidecar and stand-in Router, on its own ports."""

import asyncio
import contextlib
import shutil
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psutil
from redis.asyncio import Redis

from authz import api_key
from authz.principal import Metering
from extproc.record import UsageRecord
from quota.limit import Limit, concurrent_requests, requests_per_minute, tokens_per_day
from sidecar.embedded.certificates import ensure_certificates
from sidecar.embedded.envoy_server import envoy_command
from sidecar.embedded.ports import free_port, http_status
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.embedded.redis import EmbeddedRedis
from sidecar.envoy_config import EnvoyAddresses, render
from sidecar.process import Child, Command, wait_until_ready
from store import api_keys, ledger, plans, tenants
from store.api_keys import NewKey
from store.database import opened
from store.migration import migrate
from store.tenants import NewTenant
from tests.support.client_certificates import ClientCertificate, Issuer
from tests.support.postgres import FAST, Loop, running_loop
from tests.support.trail import trail
from tests.support.transport_option import CHOSEN

PEPPER = "7d5c1f0f3a0c4f7f9a2b6f4ad5a3a1c8"
TRAIL = trail(PEPPER)
MAX_BODY_BYTES = 4 * 1024 * 1024
READY_SECONDS = 60.0
OK = 200
CORS_ORIGINS = ("https://app.example", "http://localhost:3000")
ROOMY = (requests_per_minute(1_000_000), tokens_per_day(1_000_000_000), concurrent_requests(10_000))
# Everything runs on one busy machine; what is shown is order and outcome, not speed.
PATIENCE = {"GATEWAY_QUOTA_DEADLINE_SECONDS": "0.6"}
# All tests call from one address, and many of them with wrong credentials.
FORBEARANCE = {"GATEWAY_FAILURE_LIMIT": "1000000"}

T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T]], *, seconds: float = 30.0) -> T:
    """Ask until the answer is true, and return it."""
    answer = await condition()
    async with asyncio.timeout(seconds):
        while not answer:
            await asyncio.sleep(0.02)
            answer = await condition()
    return answer


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of its own for one test, with a plan of its own."""

    id: str
    key: str
    key_id: str
    plan: str

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@dataclass(slots=True, kw_only=True)
class Gateway:
    """One running gateway. Its processes live in a loop of their own, so that they outlive the loop of a test."""

    folder: Path
    loop: Loop
    env: dict[str, str]
    workers: int
    postgres_options: tuple[str, ...] = FAST
    change_envoy: Callable[[str], str] = str
    """What a test changes in Envoy's rendered configuration."""
    port: int = field(default_factory=free_port)
    ops_port: int = field(default_factory=free_port)
    router_port: int = field(default_factory=free_port)
    children: dict[str, Child] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    issuer: Issuer = field(init=False)
    """Of the client certificates that this gateway believes."""

    def __post_init__(self) -> None:
        self.issuer = Issuer(self.folder / "clients")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def router_url(self) -> str:
        return f"http://127.0.0.1:{self.router_port}"

    @property
    def ops_url(self) -> str:
        return f"http://127.0.0.1:{self.ops_port}"

    @property
    def socket_dir(self) -> Path:
        return self.folder / "gw"

    @property
    def postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(
            data=self.folder / "postgres", sockets=self.folder / "pg", options=self.postgres_options
        )

    @property
    def redis(self) -> EmbeddedRedis:
        return EmbeddedRedis(data=self.folder / "redis", socket=self.folder / "redis.sock")

    @property
    def dsn(self) -> str:
        return self.postgres.dsn()

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.folder / "tls" / "ca.pem")

    def client(
        self,
        tenant: Tenant | None = None,
        *,
        http2: bool = False,
        certificate: ClientCertificate | None = None,
        **options: Any,
    ) -> httpx.AsyncClient:
        """A client of the public listener."""
        return httpx.AsyncClient(
            base_url=self.url,
            verify=certificate.on(self.tls) if certificate else self.tls,
            http1=not http2,
            http2=http2,
            headers={**(tenant.headers if tenant else {}), **options.pop("headers", {})},
            timeout=httpx.Timeout(60.0),
            limits=httpx.Limits(max_connections=1000),
            **options,
        )

    async def tenant(self, *limits: Limit, metering: Metering = Metering.NATIVE) -> Tenant:
        """Make a tenant with these limits, or with room for everything."""
        name = f"t{uuid4().hex[:16]}"
        async with opened(self.dsn) as pool:
            await plans.put(pool, plans.Plan(name=name, limits=limits or ROOMY, metering=metering), trail=TRAIL)
            made = await tenants.create(pool, NewTenant(name=name, organization=name, plan=name), trail=TRAIL)
            key = api_key.generate("test")
            new = NewKey(key=key, tenant_id=made.id, name=name)
            await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=TRAIL)
        return Tenant(made.id, key.text, key.id, name)

    async def revoke(self, tenant: Tenant) -> None:
        async with opened(self.dsn) as pool:
            await api_keys.revoke(pool, tenant.key_id, now=datetime.now(UTC), trail=TRAIL)

    async def rows(self, tenant: Tenant) -> list[dict[str, Any]]:
        """The ledger's rows of a tenant."""
        async with opened(self.dsn) as pool:
            found = await pool.fetch(
                "SELECT * FROM inference_requests WHERE tenant_id = $1 ORDER BY admitted_at", tenant.id
            )
        return [{**row, "request_id": str(row["request_id"])} for row in found]

    async def row(self, request_id: str, *, seconds: float = 40.0) -> UsageRecord:
        """The ledger's row of a request, when it is there."""
        async with opened(self.dsn) as pool:

            async def found() -> UsageRecord | None:
                return await ledger.find(pool, request_id)

            row = await until(found, seconds=seconds)
        assert row is not None
        return row

    async def slots_held(self, tenant: Tenant) -> int:
        """How many of its slots a tenant's requests hold."""
        async with Redis.from_url(self.redis.url) as redis:
            keys = [key async for key in redis.scan_iter(f"igw1:*:counter:tenant:{tenant.id}/concurrent_requests")]
            return sum([int(await redis.zcard(key)) for key in keys])

    async def counted(self, tenant: Tenant, limit: str) -> int:
        """What Redis holds under one of a tenant's limits; 0 when there is nothing."""
        async with Redis.from_url(self.redis.url) as redis:
            keys = [key async for key in redis.scan_iter(f"igw1:*:counter:tenant:{tenant.id}/{limit}")]
            return sum([int(await redis.hget(key, "sum") or 0) for key in keys])

    async def is_quiet(self) -> bool:
        """Whether nothing runs any more, and all that was settled is in the ledger."""
        async with Redis.from_url(self.redis.url) as redis:
            leases = [await redis.zcard(key) async for key in redis.scan_iter("igw1:*:leases")]
            waiting = [await redis.xlen(key) async for key in redis.scan_iter("igw1:*:events")]
        return sum(leases) == sum(waiting) == 0

    async def redis_dump(self) -> bytes:
        """All that Redis holds, as it would be written to disk."""
        async with Redis.from_url(self.redis.url) as redis:
            keys = [key async for key in redis.scan_iter("*")]
            return b"".join([key + (await redis.dump(key) or b"") for key in keys])

    async def seen(self, request_id: str) -> dict[str, Any] | None:
        """What the Router saw of a request."""
        async with httpx.AsyncClient(base_url=self.router_url) as client:
            answer = await client.get(f"/demo/seen/{request_id}")
        return answer.json() if answer.status_code == OK else None

    def pids(self, module: str) -> list[int]:
        """The processes of the sidecar that run a module, such as `sidecar.worker`."""
        found = []
        for process in psutil.Process(self.children["serve"].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if module in process.cmdline():
                    found.append(process.pid)
        return found

    async def healthy_workers(self) -> int:
        """How many workers Envoy sends requests to."""
        lines = await self._hosts("sidecar", "health_flags")
        return sum(line.endswith("::healthy") for line in lines)

    async def access_log_streams_at(self, socket: str) -> int:
        """How many of Envoy's two threads send their access log to this socket, and to no other."""
        lines = await self._hosts("access_log", "rq_active")
        here = sum(int(line.rpartition("::")[2]) for line in lines if socket in line)
        return here if all(line.endswith("::0") for line in lines if socket not in line) else 0

    async def _hosts(self, cluster: str, figure: str) -> list[str]:
        transport = httpx.AsyncHTTPTransport(uds=str(self.folder / "envoy.sock"))
        async with httpx.AsyncClient(transport=transport) as admin:
            text = (await admin.get("http://envoy/clusters")).text
        return [line for line in text.splitlines() if line.startswith(f"{cluster}::") and f"::{figure}::" in line]

    def stop(self, name: str) -> None:
        self.loop.run(self.children.pop(name).stop())

    def kill(self, name: str) -> None:
        child = self.children.pop(name)
        child.kill()
        self.loop.run(_ended(child))

    def start_postgres(self) -> None:
        self.children["postgres"] = self.loop.run(self.postgres.start(self._launch, self._sink))

    def start_redis(self) -> None:
        self.children["redis"] = self.loop.run(self.redis.start(self._launch))

    def start_router(self) -> None:
        argv = (*_python("demo"), "--port", str(self.router_port))
        self.loop.run(self._start(Command(name="router", argv=argv), self.router_port, "/healthz"))

    def start_serve(self, *, ready: str = "/readyz") -> None:
        """Start the sidecar and wait for an answer there: at /livez when something that it needs is away."""
        env = {
            "DATABASE_URL": self.dsn,
            "REDIS_URL": self.redis.url,
            "GATEWAY_KEY_PEPPER": PEPPER,
            "GATEWAY_SOCKET_DIR": str(self.socket_dir),
            "GATEWAY_WORKERS": str(self.workers),
            "GATEWAY_OPS_PORT": str(self.ops_port),
            "GATEWAY_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
            "GATEWAY_ROUTER_URL": self.router_url,
            "GATEWAY_TRANSPORT": CHOSEN.transport,
            **self.env,
        }
        command = Command(name="serve", argv=(*_python("sidecar"), "serve"), env=env, stop_seconds=15.0)
        self.loop.run(self._start(command, self.ops_port, ready))

    def start_envoy(self) -> None:
        ensure_certificates(self.folder / "tls")
        addresses = EnvoyAddresses(
            port=self.port,
            address="127.0.0.1",
            tls_dir=self.folder / "tls",
            socket_dir=self.socket_dir,
            workers=self.workers,
            router=f"127.0.0.1:{self.router_port}",
            admin_socket=self.folder / "envoy.sock",
            max_body_bytes=MAX_BODY_BYTES,
            client_ca=self.issuer.path,
            cors_origins=CORS_ORIGINS,
        )
        config = self.folder / "envoy.yaml"
        config.write_text(self.change_envoy(render(addresses)))
        self.loop.run(self._start(envoy_command(config, concurrency=2), self.port, "/healthz", tls=self.tls))

    async def _start(self, command: Command, port: int, path: str, *, tls: ssl.SSLContext | None = None) -> None:
        child = await self._launch(command)
        self.children[command.name] = child

        async def answers() -> bool:
            return await http_status(port, path, tls=tls) == OK

        await wait_until_ready(child, answers, seconds=READY_SECONDS)

    async def _launch(self, command: Command) -> Child:
        return await Child.start(command, self._sink)

    def _sink(self, name: str, line: str) -> None:
        self.lines.append(f"{name:9}| {line}")


async def _ended(child: Child) -> None:
    await child.wait()


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module)


@contextlib.contextmanager
def running(
    *,
    workers: int = 2,
    env: dict[str, str] | None = None,
    durable: bool = False,
    change_envoy: Callable[[str], str] = str,
) -> Iterator[Gateway]:
    """A whole gateway, in a folder of its own, until the end of the block; `durable` when Postgres is to be killed."""
    # Not pytest's folder: a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gw-e2e-"))
    with running_loop() as loop:
        gateway = Gateway(folder=folder, loop=loop, workers=workers, env={**PATIENCE, **FORBEARANCE, **(env or {})})
        if durable:
            gateway.postgres_options = ()
        gateway.change_envoy = change_envoy
        try:
            gateway.start_postgres()
            loop.run(migrate(gateway.dsn))
            gateway.start_redis()
            gateway.start_router()
            gateway.start_serve()
            gateway.start_envoy()
            yield gateway
        finally:
            for name in ("envoy", "serve", "router", "redis", "postgres"):
                if name in gateway.children:
                    gateway.stop(name)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, body: dict[str, Any], **headers: str
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[str]]]:
    """A streamed chat answer: the response, and its `data:` lines as they come."""
    request = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True, **body}
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("POST", "/v1/chat/completions", json=request, headers=renamed) as response:
        yield response, _data_lines(response)


async def _data_lines(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
