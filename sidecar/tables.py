"""How do the commands print what they found? As a table for people, or as JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

# Nothing is folded or cut in a pipe, where a line is a row.
PIPE_WIDTH = 1000
WIDEST = 10_000
LONGEST_WORD = 30


def print_json(value: object) -> None:
    """Print dataclasses, times and plain values as indented JSON."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print the rows under their columns, or say `empty` when there are none. Numbers are set to the right."""
    found = list(rows)
    if not found:
        sys.stdout.write(empty + "\n")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        values = [row[number] for row in found]
        justify = "right" if isinstance(values[0], int) else "left"
        whole = _whole(values)
        width = max(_unbroken(cell(value), whole=whole) for value in values)
        table.add_column(column, justify=justify, overflow="fold", no_wrap=whole, min_width=width)  # type: ignore[arg-type]
    for row in found:
        table.add_row(*(cell(value) for value in row))
    console = _console()
    # Rather a line that the terminal breaks than an id that cannot be copied.
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).minimum
    console.width = max(console.width, needed)
    console.print(table)


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print one thing, a line for each of its fields."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, cell(value))
    _console().print(table)


def _unbroken(text: str, *, whole: bool) -> int:
    """How many columns must be beside each other: of a text that may be broken, the longest word, if that is one."""
    return len(text) if whole else max((len(word) for word in text.split() if len(word) <= LONGEST_WORD), default=0)


def _whole(values: Iterable[Any]) -> bool:
    """Whether the cells are ids, times and numbers, which nobody can use in pieces."""
    return not any(isinstance(value, str) and " " in value for value in values)


def cell(value: Any) -> str:
    """Write one value for a person: times in UTC to the second, numbers with their thousands apart."""
    match value:
        case None:
            return "-"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def _console() -> Console:
    # Names are text, not markup or emoji codes: a tenant may be called [red].
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
