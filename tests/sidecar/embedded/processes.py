"""What is a process doing? Asked of the kernel, and waited for without guessing how long it takes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from sidecar.process import Child, Command


def no_sink(_name: str, _line: str) -> None:
    """Forget the line."""


async def launch(command: Command) -> Child:
    return await Child.start(command, no_sink)


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is asked is the kernel, which sets no Event
            await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def below(folder: Path) -> list[int]:
    """Return the processes that hold the folder's path in their command line or work in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            works_in = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(folder).encode() in command or works_in.startswith(str(folder)):
            found.append(int(entry.name))
    return found
