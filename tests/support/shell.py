"""A shell for tests: the command line as a person types it, what it says, and how it refuses."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import typer
from typer.testing import CliRunner, Result

from store.database import Pool, opened
from tests.support.identity_rows import audited

PEPPER = "0123456789abcdef" * 4
T = TypeVar("T")


def answered(result: Result) -> str:
    assert (result.exit_code, result.exception) == (0, None), result.output
    return result.stdout


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("inference-gateway: ")
    for word in words:
        assert word in result.stderr


def row(text: str, name: str) -> str:
    """What stands beside a name in the fields of one thing."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return line.removeprefix(name).strip()


@dataclass(frozen=True, slots=True)
class Shell:
    """The commands, and the database behind them, which a command that needs none is not given."""

    app: typer.Typer
    dsn: str = ""

    def run(self, command: str, *words: str) -> Result:
        """Run a command; `words` are further ones, each as it is."""
        return CliRunner().invoke(self.app, [*command.split(), *words])

    def says(self, command: str, *words: str) -> str:
        return answered(self.run(command, *words))

    def json(self, command: str, *words: str) -> Any:
        return json.loads(self.says(f"{command} --json", *words))

    def refuses(self, command: str, *words: str) -> None:
        refused(self.run(command), *words)

    def within(self, work: Callable[[Pool], Awaitable[T]]) -> T:
        async def run() -> T:
            async with opened(self.dsn, size=1) as pool:
                return await work(pool)

        return asyncio.run(run())

    def trail(self) -> list[dict[str, Any]]:
        """The rows of the audit trail, oldest first."""
        return self.within(audited)

    def actions(self) -> list[str]:
        rows = self.trail()
        assert all(row["actor"].startswith("cli:") for row in rows)
        return [row["action"] for row in rows]
