"""What does every administrative command do around its work? Connect, run, and say in one line what went wrong."""

import asyncio
import os
import pwd
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from authz.directory import DirectoryOutage
from sidecar.commands.admin_settings import complaints, store_settings
from sidecar.process import StartError
from store import database
from store.audit import Actor, Trail
from store.database import DatabaseOutage, Pool
from store.field_error import FieldError
from store.migration import MigrationError

FAILED = 1
MISCONFIGURED = 2
PROGRAM = "inference-gateway"

T = TypeVar("T")


def with_pool(work: Callable[[Pool], Awaitable[T]]) -> T:
    """Run the work with connections to the configured database."""
    dsn = store_settings().database_url.get_secret_value()

    async def run() -> T:
        async with database.opened(dsn, size=1) as pool:
            return await work(pool)

    return asyncio.run(run())


def pepper() -> bytes:
    """Return the configured pepper of the keys."""
    return store_settings().key_pepper.get_secret_value().encode()


def trail() -> Trail:
    """Return the audit trail of what this person does at this machine."""
    return Trail(Actor(name=f"cli:{_os_user()}", source=socket.gethostname()), pepper=pepper())


def _os_user() -> str:
    """Not from the environment, which may say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run under a number that no user has
        return str(os.getuid())


def fail(*lines: str, code: int = FAILED) -> NoReturn:
    """End the program: one line on stderr for each thing that is wrong."""
    for line in lines:
        typer.echo(f"{PROGRAM}: {line}", err=True)
    raise typer.Exit(code)


class PlainErrors(TyperGroup):
    """The outermost group of commands: an expected error is a line on stderr, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            fail(*complaints(error), code=MISCONFIGURED)
        except FieldError as error:
            fail(str(error))
        except (DatabaseOutage, DirectoryOutage, MigrationError, StartError) as error:
            fail(str(error))
