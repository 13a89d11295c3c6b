"""How does the whole gateway start on one machine, with no Docker? As children of one process, in one folder.

`up` starts Postgres, Redis, a stand-in Router, the sidecar and Envoy, waits until a request gets through, and
ends them all in order. A child that dies ends the run, with its last lines. The servers themselves are in
`sidecar/embedded/`, the supervision of one child in `sidecar/process.py`.
"""

import asyncio
import contextlib
import secrets
import shlex
import signal
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.embedded import state_folder
from sidecar.embedded.certificates import Certificates, ensure_certificates
from sidecar.embedded.envoy_server import EnvoyOptions, envoy_command
from sidecar.embedded.fleet import Fleet
from sidecar.embedded.journal import Journal
from sidecar.embedded.ports import accepts, free_port, http_status, require_free
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.embedded.redis import EmbeddedRedis
from sidecar.embedded.router import RouterAddress, router_address
from sidecar.embedded.state_folder import StateFolder
from sidecar.listening import ON_UNIX_SOCKETS
from sidecar.process import ChildExitedError, Command, StartError, run_to_end, wait_until_ready
from sidecar.settings import UpSettings

# Nobody is asked who is gone already: each child ends before those it calls.
STOP_ORDER = ("envoy", "sidecar", "router", "redis", "postgres")
SHOWN = frozenset({"sidecar", "envoy"})
# Envoy ends first, and with it every stream: nothing is left to wait for.
DRAIN_SECONDS = 0
# Together with the other children's deadlines, the end takes less than 10 s even if every one of them hangs.
SIDECAR_STOP_SECONDS = 4.0
MIGRATE_SECONDS = 120.0
READY_SECONDS = 60.0
PEPPER_BYTES = 32
# Everything shares one machine here, with whatever else runs on it: more patience than in production.
QUOTA_DEADLINE_SECONDS = 0.5
# What the administrative commands need, for `inference-gateway tenant list` beside a running `up`.
ADMIN_VARIABLES = ("DATABASE_URL", "REDIS_URL", "GATEWAY_KEY_PEPPER", "GATEWAY_WEBHOOK_ALLOW_PRIVATE")
PYTHON_ENV = {"PYTHONUNBUFFERED": "1"}  # lines arrive when they are written, not when 8 KiB are full
OK = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What `up` runs but does not know: the gateway itself."""

    ensure_demo: Callable[[str, str, str | None], Awaitable[str]]
    """From database URL, pepper and the key of the former run to a key that works."""
    render_envoy: Callable[[EnvoyOptions], str]
    cli: tuple[str, ...] = (sys.executable, "-m", "sidecar")
    """Understands `migrate` and `serve`."""
    router: tuple[str, ...] = (sys.executable, "-m", "demo")
    """Understands `--port`; listens on 127.0.0.1."""
    model: str = "demo"
    """The model in the example that is printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where this run listens."""

    public: int
    ops: int

    @property
    def url(self) -> str:
        """What clients call."""
        return f"https://127.0.0.1:{self.public}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of `up`: everything that is known before the first child starts."""

    product: Product
    state: StateFolder
    ports: Ports
    workers: int
    router: RouterAddress | None
    """None: the stand-in is started."""

    @property
    def socket_dir(self) -> Path:
        """Folder of the workers' sockets."""
        return self.state.sockets / "gw"

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database."""
        return EmbeddedPostgres(data=self.state.postgres, sockets=self.state.sockets / "pg")

    @property
    def redis(self) -> EmbeddedRedis:
        """The limits."""
        return EmbeddedRedis(data=self.state.redis, socket=self.state.sockets / "redis.sock")


async def up(settings: UpSettings, product: Product) -> int:
    """Run the whole gateway until a signal ends it; returns the exit code."""
    try:
        router = router_address(settings.router_url) if settings.router_url else None
        with state_folder.opened(settings.state) as state, Journal(state.log, shown=SHOWN) as journal:
            ports = _free_ports(settings)
            run = Run(product=product, state=state, ports=ports, workers=settings.workers, router=router)
            await _supervise(run, journal)
    except StartError as error:
        sys.stderr.write(f"inference-gateway: {error}\n")
        return 1
    return 0


def _free_ports(settings: UpSettings) -> Ports:
    require_free(settings.port, variable="GATEWAY_PORT")
    ops = settings.ops_port or settings.port + 1
    if ops == settings.port:
        raise StartError(f"GATEWAY_OPS_PORT and GATEWAY_PORT are both {ops}: they must differ")
    require_free(ops, variable="GATEWAY_OPS_PORT")
    return Ports(public=settings.port, ops=ops)


async def _supervise(run: Run, journal: Journal) -> None:
    """Start everything and end everything; raises StartError when a child does not start or dies."""
    fleet = Fleet(journal.sink, stop_order=STOP_ORDER)
    with _ended_by_signals(fleet.kill) as asked_to_end:
        starting = asyncio.create_task(_start(run, fleet, journal))
        try:
            await _first(starting, fleet.died, asked_to_end)
            if starting.done():
                journal.say(starting.result())
                await _first(fleet.died, asked_to_end)
            if fleet.died.done() and not asked_to_end.done():
                raise ChildExitedError(fleet.died.result())
            journal.say("Stopping (Ctrl-C again ends it by force) ...")
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await fleet.stop()


async def _start(run: Run, fleet: Fleet, journal: Journal) -> str:
    """Start everything, in order; returns the text that greets the user."""
    began = time.monotonic()
    journal.say(f"Starting in {run.state.path} ...")
    certificates = ensure_certificates(run.state.tls)
    router = run.router or RouterAddress("127.0.0.1", free_port())
    await _together(
        run.postgres.start(fleet.launch, journal.sink),
        run.redis.start(fleet.launch),
        _start_router(run, fleet, router.port),
    )
    key = await _start_sidecar(run, fleet, journal, router)
    await _start_envoy(run, fleet, router)
    run.state.remember("demo.env", _demo_env(run.ports.url, certificates, key))
    return _greeting(run, key, seconds=time.monotonic() - began)


async def _start_router(run: Run, fleet: Fleet, port: int) -> None:
    if run.router is not None:
        return
    argv = (*run.product.router, "--port", str(port))
    child = await fleet.launch(Command(name="router", argv=argv, env=PYTHON_ENV, stop_seconds=1.0))
    await wait_until_ready(child, lambda: accepts(port), seconds=READY_SECONDS)


async def _start_sidecar(run: Run, fleet: Fleet, journal: Journal, router: RouterAddress) -> str:
    """Bring the database up to date and start the sidecar on it; returns a key that it accepts."""
    pepper = run.state.secret("pepper", lambda: secrets.token_hex(PEPPER_BYTES))
    env = {**_sidecar_env(run, pepper), "GATEWAY_ROUTER_URL": router.url}
    run.state.remember("admin.env", _shell({name: env[name] for name in ADMIN_VARIABLES}))
    migrate = Command(name="migrate", argv=(*run.product.cli, "migrate"), env=env, stop_seconds=1.0)
    await run_to_end(migrate, sink=journal.sink, seconds=MIGRATE_SECONDS)
    run.socket_dir.mkdir(mode=0o700)
    serve = Command(name="sidecar", argv=(*run.product.cli, "serve"), env=env, stop_seconds=SIDECAR_STOP_SECONDS)
    child = await fleet.launch(serve)
    key = await run.product.ensure_demo(run.postgres.dsn(), pepper, run.state.recall("demo.key"))
    run.state.remember("demo.key", key + "\n")

    async def serves() -> bool:
        return await http_status(run.ports.ops, "/readyz") == OK

    await wait_until_ready(child, serves, seconds=READY_SECONDS)
    return key


async def _start_envoy(run: Run, fleet: Fleet, router: RouterAddress) -> None:
    """Start Envoy and wait until a request gets through it, over TLS that our CA vouches for."""
    options = EnvoyOptions(
        port=run.ports.public,
        tls=run.state.tls,
        socket_dir=run.socket_dir,
        workers=run.workers,
        router_host=router.host,
        router_port=router.port,
        admin_socket=run.state.sockets / "envoy.sock",
    )
    run.state.remember(run.state.envoy_config.name, run.product.render_envoy(options))
    child = await fleet.launch(envoy_command(run.state.envoy_config, concurrency=run.workers))
    tls = ssl.create_default_context(cafile=run.state.tls / "ca.pem")

    async def answers() -> bool:
        return await http_status(run.ports.public, "/healthz", tls=tls) == OK

    await wait_until_ready(child, answers, seconds=READY_SECONDS)


def _sidecar_env(run: Run, pepper: str) -> Mapping[str, str]:
    return {
        **PYTHON_ENV,
        "DATABASE_URL": run.postgres.dsn(),
        "REDIS_URL": run.redis.url,
        "GATEWAY_KEY_PEPPER": pepper,
        "GATEWAY_SOCKET_DIR": str(run.socket_dir),
        **ON_UNIX_SOCKETS,
        "GATEWAY_WORKERS": str(run.workers),
        "GATEWAY_OPS_PORT": str(run.ports.ops),
        "GATEWAY_DRAIN_SECONDS": str(DRAIN_SECONDS),
        "GATEWAY_QUOTA_DEADLINE_SECONDS": str(QUOTA_DEADLINE_SECONDS),
        "GATEWAY_WEBHOOK_ALLOW_PRIVATE": "true",
    }


def _demo_env(url: str, tls: Certificates, key: str) -> str:
    return _shell(
        {
            "GATEWAY_URL": url,
            "GATEWAY_CA": str(tls.ca),
            "GATEWAY_API_KEY": key,
            "GATEWAY_CLIENT_CERT": str(tls.client),
            "GATEWAY_CLIENT_KEY": str(tls.client_key),
        }
    )


def _shell(values: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def _greeting(run: Run, key: str, *, seconds: float) -> str:
    body = f'{{"model": "{run.product.model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return f"""
The gateway is ready after {seconds:.1f} s: {run.ports.url}

  curl --cacert {shlex.quote(str(run.state.tls / "ca.pem"))} {run.ports.url}/v1/chat/completions \\
    -H {shlex.quote(f"authorization: Bearer {key}")} -H 'content-type: application/json' \\
    -d {shlex.quote(body)}

  for scripts  . {shlex.quote(str(run.state.demo_env))}
  health       http://127.0.0.1:{run.ports.ops}/readyz
  logs         {run.state.log}
  Ctrl-C ends it.
"""


@contextlib.contextmanager
def _ended_by_signals(kill: Callable[[], None]) -> Iterator[asyncio.Future[None]]:
    """Give a future that the first signal resolves; the second one kills."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[None] = loop.create_future()

    def on_signal() -> None:
        if asked.done():
            kill()
        else:
            asked.set_result(None)

    # SIGHUP: the terminal was closed.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield asked
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _together(*starts: Coroutine[object, object, object]) -> None:
    """Run them side by side; when one fails, the others are cancelled, so that nothing starts afterwards."""
    tasks = [asyncio.create_task(start) for start in starts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first(*awaited: asyncio.Future[Any]) -> None:
    await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
