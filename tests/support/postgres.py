"""A real Postgres for the tests: one server per session, one migrated database per test."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest

from sidecar.embedded.postgres import EmbeddedPostgres
from sidecar.process import Child, Command
from store import database as store_database
from store.migration import migrate

TEMPLATE = "gateway_template"
# Durability is for data that outlive the test.
FAST = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
START_SECONDS = 60

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loop:
    """An event loop in a thread of its own: a server outlives the loop of each test, and its output is drained."""

    loop: asyncio.AbstractEventLoop

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(START_SECONDS)


@contextmanager
def running_loop() -> Iterator[Loop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield Loop(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def _loop() -> Iterator[Loop]:
    with running_loop() as loop:
        yield loop


@pytest.fixture(scope="session")
def _server(_loop: Loop) -> Iterator[EmbeddedPostgres]:
    # Not pytest's folder: a socket's path holds 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="gw-pg-"))
    server = EmbeddedPostgres(data=folder / "data", sockets=folder / "sock", options=FAST)
    lines: list[str] = []

    def sink(_: str, line: str) -> None:
        lines.append(line)

    async def launch(command: Command) -> Child:
        return await Child.start(command, sink)

    try:
        child = _loop.run(server.start(launch, sink))
        try:
            yield server
        finally:
            _loop.run(child.stop())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(_server: EmbeddedPostgres) -> str:
    """Address of the server's administrative database."""
    return _server.dsn("postgres")


@pytest.fixture(scope="session")
def _template(_server: EmbeddedPostgres, postgres: str, _loop: Loop) -> str:
    async def make() -> None:
        await _execute(postgres, f"CREATE DATABASE {TEMPLATE}")
        await migrate(_server.dsn(TEMPLATE))

    _loop.run(make())
    return TEMPLATE


@pytest.fixture
def empty_database(_server: EmbeddedPostgres, _loop: Loop) -> Iterator[str]:
    """Address of a database with nothing in it."""
    with _created(_server, _loop, template="template1") as dsn:
        yield dsn


@pytest.fixture
def database(_server: EmbeddedPostgres, _template: str, _loop: Loop) -> Iterator[str]:
    """Address of a fresh database at the newest revision."""
    with _created(_server, _loop, template=_template) as dsn:
        yield dsn


@pytest.fixture
async def pool(database: str) -> AsyncIterator[store_database.Pool]:
    """Connections to `database`."""
    async with store_database.opened(database) as pool:
        yield pool


@contextmanager
def _created(server: EmbeddedPostgres, loop: Loop, *, template: str) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    administration = server.dsn("postgres")
    loop.run(_execute(administration, f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.dsn(name)
    finally:
        loop.run(_execute(administration, f"DROP DATABASE {name} WITH (FORCE)"))


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
