"""How is Postgres reached, and what does it mean when it is not? One place makes connections and names the outage."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeAlias, TypeVar

import asyncpg

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

T = TypeVar("T")

CONNECT_SECONDS = 5.0
COMMAND_SECONDS = 10.0
CLOSE_SECONDS = 2.0
APPLICATION_NAME = "inference-gateway"

# Every OSError, its subclasses for timeouts, refusals and names included, and all that the server or the driver says.
_DRIVER_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class DatabaseOutage(Exception):
    """The database cannot do what it was asked now. The message is one line and holds no secret."""


@contextlib.contextmanager
def outages_named() -> Iterator[None]:
    """Raise `DatabaseOutage` in place of whatever the driver raises."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise DatabaseOutage(f"the database has another schema ({error}); run: inference-gateway migrate") from error
    except _DRIVER_ERRORS as error:
        raise DatabaseOutage(f"the database cannot be used: {_one_line(error)}") from error


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of the work; raises `DatabaseOutage` when it takes longer.

    It is not waited for then: the driver, cancelled, asks a server that hangs to cancel as well, and waits for that.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_leave)
    if task.cancelled() or not task.done():
        raise DatabaseOutage(f"the database did not answer within {seconds:g} s")
    return task.result()


def _leave(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # marks it as seen


async def connect(dsn: str, **options: Any) -> Connection:
    """Open one connection; `options` are asyncpg's. Raises `DatabaseOutage`."""
    settings = {"application_name": APPLICATION_NAME, **options.pop("server_settings", {})}
    with outages_named():
        try:
            return await asyncpg.connect(dsn, **{"timeout": CONNECT_SECONDS, **options}, server_settings=settings)
        except ValueError:
            # Not quoted and not chained: the text of the error may hold a piece of the password.
            raise DatabaseOutage(
                "the database URL is not valid; it looks like postgresql://user:password@host:5432/name"
            ) from None


async def open_pool(dsn: str, *, size: int = 4) -> Pool:
    """Open a pool of at most `size` connections; none is made before it is needed, so this needs no database."""
    connecting: Any = connect  # the stubs ask for every option of asyncpg's own by name
    with outages_named():
        pool: Pool = await asyncpg.create_pool(
            dsn, min_size=0, max_size=size, command_timeout=COMMAND_SECONDS, connect=connecting
        )
    return pool


@contextlib.asynccontextmanager
async def opened(dsn: str, *, size: int = 4) -> AsyncIterator[Pool]:
    """Give a pool that is closed at the end."""
    pool = await open_pool(dsn, size=size)
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: Pool) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await pool.close()
    except TimeoutError:  # the server is gone, or someone keeps a connection
        pool.terminate()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "it did not answer in time"
