"""What is measured side by side? Three Envoys before one Router: bare, with the floor behind it, with the gateway.

All of them run from the beginning to the end; a measurement sends load to one. Loopback and Unix sockets only.
"""

import asyncio
import contextlib
import secrets
import shutil
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from authz import api_key
from authz.principal import Metering
from quota.limit import concurrent_requests, requests_per_minute, tokens_per_day
from quota.redis_events import RedisSettledEvents
from sidecar.embedded.certificates import Certificates, ensure_certificates
from sidecar.embedded.envoy_server import envoy_command
from sidecar.embedded.fleet import Fleet
from sidecar.embedded.ports import accepts, free_port, http_status
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.embedded.redis import EmbeddedRedis
from sidecar.envoy_config import EnvoyAddresses, render
from sidecar.listening import Transport
from sidecar.process import Child, Command, wait_until_ready
from sidecar.redis_client import server_pipe
from sidecar.sockets import recorder_socket, worker_socket
from store import api_keys, plans, tenants
from store.database import opened
from store.migration import migrate
from store.tenants import NewTenant
from tests.bench import credentials
from tests.bench.bare_envoy import without_gateway
from tests.bench.cpu import Group
from tests.support.oidc import SigningKey
from tests.support.trail import trail

BARE, FLOOR, GATEWAY = "bare", "floor", "gateway"
WORKERS = 2
ENVOY_THREADS = 2
# All three are checked, and none ever refuses.
LIMITS = (requests_per_minute(100_000_000), tokens_per_day(1_000_000_000_000), concurrent_requests(1_000_000))
READY_SECONDS = 60.0
# The machine is full during the JSON load: what is measured is the cost of an answer, not who refuses first.
QUOTA_DEADLINE_SECONDS = 0.6
_SETTLING_SECONDS = 0.2
_MAX_BODY_BYTES = 4 * 1024 * 1024
_OK = 200
_STOP_ORDER = (
    *(f"envoy-{name}" for name in (BARE, FLOOR, GATEWAY)),
    *("sidecar", *(f"floor-{index}" for index in range(WORKERS)), "floor-recorder", "router", "redis", "postgres"),
)


@dataclass(slots=True, kw_only=True)
class Stage:
    """The running servers."""

    folder: Path
    fleet: Fleet
    transport: Transport = Transport.LEAN
    """What carries the gateway's gRPC, and the floor's."""
    pepper: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    ops_port: int = field(default_factory=free_port)
    router_port: int = field(default_factory=free_port)
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in (BARE, FLOOR, GATEWAY)})
    issuer: SigningKey = field(default_factory=SigningKey.generate)
    keys: dict[Metering, str] = field(default_factory=dict)
    tenants: dict[Metering, str] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)
    """A token of each kind, all of one tenant."""
    children: dict[str, Child] = field(default_factory=dict)

    @property
    def certificates(self) -> Certificates:
        return Certificates(self.folder / "tls")

    @property
    def postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(data=self.folder / "postgres", sockets=self.folder / "pg")

    @property
    def redis(self) -> EmbeddedRedis:
        return EmbeddedRedis(data=self.folder / "redis", socket=self.folder / "redis.sock")

    def groups(self, name: str) -> dict[str, Group]:
        """The processes that serve this variant, as they are accounted for."""
        counted = {"envoy": self._group(f"envoy-{name}"), "router": self._group("router")}
        if name == FLOOR:
            workers = [f"floor-{index}" for index in range(WORKERS)]
            counted |= {"sidecar": self._group(*workers, "floor-recorder"), "workers": self._group(*workers)}
        if name == GATEWAY:
            sidecar = self._group("sidecar")
            stores = {"redis": self._group("redis"), "postgres": self._group("postgres")}
            counted |= {"sidecar": sidecar, "workers": replace(sidecar, module="sidecar.worker"), **stores}
        return counted

    async def settled(self) -> None:
        """Wait until the ledger has a row of every request: writing it is part of what a request costs."""
        await asyncio.sleep(_SETTLING_SECONDS)
        async with contextlib.aclosing(server_pipe(self.redis.url, deadline=READY_SECONDS)) as pipe:
            events = RedisSettledEvents(pipe, consumer="bench")
            while await events.backlog():  # noqa: ASYNC110 - what is asked is another process, which sets no Event
                await asyncio.sleep(_SETTLING_SECONDS)

    async def rows(self) -> int:
        """How many requests are in the ledger."""
        async with opened(self.postgres.dsn()) as pool:
            return int(await pool.fetchval("SELECT count(*) FROM inference_requests"))

    async def start(self) -> None:
        """Start everything and wait until each Envoy answers."""
        ensure_certificates(self.certificates.folder)
        self.children["postgres"] = await self.postgres.start(self.fleet.launch, _unheard)
        self.children["redis"] = await self.redis.start(self.fleet.launch)
        await migrate(self.postgres.dsn())
        for metering in Metering:
            self.keys[metering] = await self._tenant_key(metering)
        await self._start_router()
        await self._start_sidecar()
        await self._start_floor()
        await asyncio.gather(*(self._start_envoy(name) for name in self.ports))
        self.credentials = await credentials.made(self)

    def _group(self, *names: str) -> Group:
        return Group(tuple(self.children[name].pid for name in names))

    async def _tenant_key(self, metering: Metering) -> str:
        name = f"bench-{metering.value}"
        async with opened(self.postgres.dsn()) as pool:
            by = trail(self.pepper)
            await plans.put(pool, plans.Plan(name=name, limits=LIMITS, metering=metering), trail=by)
            tenant = await tenants.create(pool, NewTenant(name=name, organization=name, plan=name), trail=by)
            self.tenants[metering] = tenant.id
            key = api_key.generate("bench")
            new = api_keys.NewKey(key=key, tenant_id=tenant.id, name=name)
            await api_keys.create(pool, new, pepper=self.pepper.encode(), trail=by)
        return key.text

    async def _start_router(self) -> None:
        child = await self._launch(Command(name="router", argv=_python("demo", "--port", str(self.router_port))))
        await wait_until_ready(child, lambda: accepts(self.router_port), seconds=READY_SECONDS)

    async def _start_sidecar(self) -> None:
        env = {
            "DATABASE_URL": self.postgres.dsn(),
            "REDIS_URL": self.redis.url,
            "GATEWAY_KEY_PEPPER": self.pepper,
            "GATEWAY_SOCKET_DIR": str(self.folder / GATEWAY),
            "GATEWAY_WORKERS": str(WORKERS),
            "GATEWAY_OPS_PORT": str(self.ops_port),
            "GATEWAY_DRAIN_SECONDS": "0",
            "GATEWAY_QUOTA_DEADLINE_SECONDS": str(QUOTA_DEADLINE_SECONDS),
            "GATEWAY_JWT_ISSUERS": credentials.issuers(self.issuer),
            "GATEWAY_FAILURE_LIMIT": "1000000",
            "GATEWAY_TRANSPORT": self.transport.value,
        }
        child = await self._launch(Command(name="sidecar", argv=_python("sidecar", "serve"), env=env))

        async def serves() -> bool:
            return await http_status(self.ops_port, "/readyz") == _OK

        await wait_until_ready(child, serves, seconds=READY_SECONDS)

    async def _start_floor(self) -> None:
        sockets = self.folder / FLOOR
        sockets.mkdir(mode=0o700)
        listeners = {f"floor-{index}": worker_socket(sockets, index) for index in range(WORKERS)}
        for name, path in {**listeners, "floor-recorder": recorder_socket(sockets)}.items():
            await self._launch(
                Command(name=name, argv=_python("tests.bench.allow_all", self.transport.value, str(path)))
            )

    async def _start_envoy(self, name: str) -> None:
        addresses = EnvoyAddresses(
            port=self.ports[name],
            address="127.0.0.1",
            tls_dir=self.certificates.folder,
            socket_dir=self.folder / name,
            workers=WORKERS,
            router=f"127.0.0.1:{self.router_port}",
            admin_socket=self.folder / f"envoy-{name}.sock",
            max_body_bytes=_MAX_BODY_BYTES,
        )
        rendered = render(addresses)
        config = self.folder / f"envoy-{name}.yaml"
        config.write_text(without_gateway(rendered) if name == BARE else rendered)
        command = replace(envoy_command(config, concurrency=ENVOY_THREADS), name=f"envoy-{name}")
        child = await self._launch(command)
        tls = ssl.create_default_context(cafile=self.certificates.ca)

        async def answers() -> bool:
            return await http_status(self.ports[name], "/healthz", tls=tls) == _OK

        await wait_until_ready(child, answers, seconds=READY_SECONDS)

    async def _launch(self, command: Command) -> Child:
        child = self.children[command.name] = await self.fleet.launch(command)
        return child


@contextlib.asynccontextmanager
async def opened_stage(transport: Transport) -> AsyncIterator[Stage]:
    """Everything that is measured, in a folder of its own, until the end of the block."""
    # The system's folder for it: a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gw-bench-"))
    fleet = Fleet(_unheard, stop_order=_STOP_ORDER)
    stage = Stage(folder=folder, fleet=fleet, transport=transport)
    try:
        await stage.start()
        yield stage
    finally:
        await fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _unheard(name: str, line: str) -> None:
    """A child's last lines are kept with it, and told when it dies."""
