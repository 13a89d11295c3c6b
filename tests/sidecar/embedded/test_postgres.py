"""Does the embedded Postgres start: fresh, again, after a kill, as root and as an ordinary user?"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from sidecar.embedded import unprivileged
from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.process import Command, StartError, run_to_end
from tests.sidecar.embedded.processes import below, launch, no_sink, until

REPOSITORY = Path(__file__).parents[3]
FAST = ("-c", "fsync=off")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A path short enough for sockets, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="gw-test-"))
    yield path
    shutil.rmtree(path)


def server_in(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(data=folder / "postgres", sockets=folder / "sock", options=FAST)


async def query(server: EmbeddedPostgres, *statements: str) -> object:
    connection = await asyncpg.connect(server.dsn())
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def test_it_starts_fresh_again_and_after_a_kill(folder: Path) -> None:
    server = server_in(folder)
    child = await server.start(launch, no_sink)
    assert await query(server, "CREATE TABLE t AS SELECT 17 AS n", "SELECT n FROM t") == 17
    assert (await child.stop()).code == 0

    child = await server.start(launch, no_sink)
    assert await query(server, "SELECT n FROM t") == 17
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()

    child = await server.start(launch, no_sink)
    assert await query(server, "SELECT n FROM t") == 17
    await child.stop()
    await until(lambda: not below(folder))


async def test_a_pid_file_whose_pid_was_reused_is_no_obstacle(folder: Path) -> None:
    server = server_in(folder)
    child = await server.start(launch, no_sink)
    pid_file = (server.data / "postmaster.pid").read_text()
    await child.stop()
    # A machine that restarted may have given the pid to anybody: to this test, say.
    (server.data / "postmaster.pid").write_text(pid_file.replace(str(child.pid), str(os.getpid()), 1))
    child = await server.start(launch, no_sink)
    await child.stop()


async def test_an_initdb_that_was_killed_is_repeated(folder: Path) -> None:
    server = server_in(folder)
    half = folder / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    child = await server.start(launch, no_sink)
    assert await query(server, "SELECT 1") == 1
    await child.stop()
    assert not half.exists()


async def test_the_users_own_postgres_variables_do_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "6000", "PGHOST": "db", "PGUSER": "me", "PGDATABASE": "mine"}.items():
        monkeypatch.setenv(name, value)
    server = server_in(folder)
    child = await server.start(launch, no_sink)
    assert await query(server, "SELECT current_database()") == "gateway"
    await child.stop()


async def test_it_dies_with_its_supervisor(folder: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from tests.sidecar.embedded.processes import launch, no_sink
from tests.sidecar.embedded.test_postgres import server_in

async def main():
    folder = Path({str(folder)!r})
    child = await server_in(folder).start(launch, no_sink)
    (folder / "ready").touch()
    await child.wait()

asyncio.run(main())
"""
    supervisor = await launch(Command(name="supervisor", argv=(sys.executable, "-c", code)))
    await until((folder / "ready").exists, seconds=60)
    assert below(folder / "postgres")
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait()
    await until(lambda: not below(folder / "postgres"))


@as_root
async def test_an_ordinary_user_needs_no_help(folder: Path) -> None:
    os.chown(folder, 65534, 65534)
    code = f"""
import asyncio, os
from pathlib import Path
from tests.sidecar.embedded.processes import launch, no_sink
from tests.sidecar.embedded.test_postgres import query, server_in

async def main():
    assert os.geteuid() == 65534
    server = server_in(Path({str(folder)!r}))
    child = await server.start(launch, no_sink)
    assert await query(server, "SELECT 17") == 17
    assert (await child.stop()).code == 0

asyncio.run(main())
"""
    # The capability only lets this user read a Python that lies below /root.
    user = unprivileged.as_nobody((sys.executable, "-c", code))
    env = {"HOME": str(folder), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    await run_to_end(Command(name="user", argv=user, env=env), sink=no_sink, seconds=60)


@as_root
async def test_root_without_setpriv_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(StartError, match="install the package util-linux, or run as an ordinary user"):
        await server_in(folder).start(launch, no_sink)


@as_root
async def test_root_that_may_not_change_its_user_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = folder / "setpriv"
    refusing.write_text("#!/bin/sh\necho 'setpriv: setresuid failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    with pytest.raises(StartError, match="setresuid failed: Operation not permitted"):
        await server_in(folder).start(launch, no_sink)
