"""Where do the children's lines go? Each to its own file, and some to the terminal too."""

import contextlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Self, TextIO

NAME_WIDTH = 8


class Journal:
    """The logs of one run. Its `sink` is given to the children."""

    def __init__(self, folder: Path, *, shown: Collection[str], terminal: TextIO | None = None) -> None:
        self.folder = folder
        self._shown = shown
        self._terminal = terminal or sys.stdout
        self._files: dict[str, TextIO] = {}
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def sink(self, name: str, line: str) -> None:
        """Take one line of a child."""
        # A full disk must not end the run: Redis and Postgres complain about it in their own ways.
        with contextlib.suppress(OSError):
            self._file(name).write(line + "\n")
        if name in self._shown:
            self.say(f"{name:<{NAME_WIDTH}} | {line}")

    def say(self, text: str) -> None:
        """Tell the person at the terminal; a terminal that was closed is no reason to end."""
        with contextlib.suppress(OSError, ValueError):
            self._terminal.write(text + "\n")
            self._terminal.flush()

    def _file(self, name: str) -> TextIO:
        if name not in self._files:
            path = self.folder / f"{name}.log"
            with contextlib.suppress(FileNotFoundError):
                path.replace(path.with_suffix(".log.1"))  # the former run's, kept once
            self._files[name] = path.open("w", buffering=1)
        return self._files[name]
