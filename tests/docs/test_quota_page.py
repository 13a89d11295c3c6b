"""Does docs/quota.md keep its word: is each promise proved, each limit it writes one, each header and picture there?

That the tests, files and headings which it names exist is seen by test_links.py, as of every page.
"""

import re
from itertools import chain
from pathlib import Path

import pytest

from extproc.rate_limit_policy import policy
from quota.limit import Dimension, Mode, OnOutage, Unit, Window, requests_per_minute
from sidecar.commands.limit_option import parse_limit
from tests.docs.plots import plots
from tests.support.values import held

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quota.md").read_text()

_TEST = re.compile(r"tests/[\w/]+\.py::test_\w+")
_CODE = re.compile(r"`([^`\n]+)`")
_NAMED = "|".join((*Unit, Unit.COST.value))
_LIMIT = re.compile(rf"(?<![\w:])(?:{_NAMED})(?:_per_\w+)?=[^\s`']+")


def section(heading: str) -> str:
    """The text below a heading, up to the next of its kind."""
    return PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables, without their heads."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if set(cells[0].strip()) != {"-"}]


PROMISES = rows(section("What is promised, and what shows it"))[1:]


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0][:60])
def test_each_promise_names_its_tests_with_their_files(row: list[str]) -> None:
    promise, proofs = row
    assert promise
    assert _CODE.findall(proofs), "nothing shows it"
    assert all(_TEST.fullmatch(code) for code in _CODE.findall(proofs))


def test_no_promise_is_made_twice() -> None:
    assert len({promise for promise, _ in PROMISES}) == len(PROMISES)


@pytest.mark.parametrize("text", sorted(set(_LIMIT.findall(PAGE))))
def test_every_limit_on_the_page_is_one(text: str) -> None:
    parse_limit(text.rstrip(".,;"))


def test_everything_that_a_limit_can_say_is_explained() -> None:
    explained = section("What a limit is")
    words = [*Unit, *Mode, *OnOutage, *Dimension]
    assert [word for word in words if f"`{word}`" not in explained and f"={word}" not in explained] == []
    written = [parse_limit(text) for text in _LIMIT.findall(explained)]
    assert {limit.window for limit in written} == set(Window)


def test_each_plot_is_shown() -> None:
    shown = re.findall(r"!\[.+\]\((images/[\w-]+\.svg)\)", PAGE)
    assert sorted(shown) == sorted(plots())


def test_the_headers_are_those_that_are_told() -> None:
    named = set(_CODE.findall(section("What a client is told")))
    known = policy(held(requests_per_minute(1)))
    told = chain.from_iterable(
        (group.limit, group.remaining, group.reset) for group in (*known.openai, *known.anthropic)
    )
    assert set(told) <= named
