"""Which revision is the schema at, and how does it get to the newest? Revisions are in store/migrations/versions.

Alembic runs them over a connection that asyncpg made itself, so a URL means the same here as everywhere in `store`.
"""

import contextlib
from collections.abc import AsyncIterator

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from store.database import DatabaseOutage, connect, outages_named

# A revision may have to wait for a lock that a running query holds.
STATEMENT_SECONDS = 300.0
# Any number, the same in every release: whoever migrates holds this lock, the others wait and find nothing to do.
_LOCK = 7_130_442_891


class MigrationError(Exception):
    """The schema cannot be brought to the newest revision. The message is one line."""


async def migrate(dsn: str) -> str:
    """Bring the schema to the newest revision and return it; safe to run in several processes at once.

    Raises `DatabaseOutage` or `MigrationError`.
    """
    async with _connected(dsn) as connection, connection.begin():
        # Taken before Alembic runs at all: it keeps its state in globals of the process.
        await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        await connection.run_sync(_upgrade)
        reached = await connection.run_sync(_revision)
    return str(reached)


async def current(dsn: str) -> str | None:
    """Return the revision the schema is at; None for an empty database."""
    async with _connected(dsn) as connection:
        return await connection.run_sync(_revision)


def newest() -> str:
    """Return the newest revision this code knows."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[AsyncConnection]:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect(dsn, command_timeout=STATEMENT_SECONDS),
        poolclass=NullPool,
    )
    try:
        with outages_named():
            async with engine.connect() as connection:
                yield connection
    except CommandError as error:
        raise MigrationError(f"{error} Is the database newer than this program?") from error
    except SQLAlchemyError as error:
        first_line = str(error).splitlines()[0]
        raise DatabaseOutage(f"the schema cannot be changed or read: {first_line}") from error


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "store:migrations")
    config.set_main_option("path_separator", "os")
    return config
