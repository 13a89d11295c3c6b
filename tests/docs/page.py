"""What does a page look like? One that is made from the code has a mark that says so; all have sections and tables."""

from collections.abc import Iterable, Sequence

COMMAND = "python -m tests.docs.generate"
_MARK = f"<!-- Made by `{COMMAND}` from the code. Change the code, not this page. -->"


def page(title: str, *parts: str) -> str:
    """The text of a page."""
    return "\n\n".join([_MARK, f"# {title}", *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next of its kind."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables, without the lines below their heads."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if set(cells[0].strip()) != {"-"}]
