"""Does docs/quota.md keep its word: is each limit it writes one, each header and picture there?

That each promise is proved is seen by test_promises.py, that what it names exists by test_links.py, as of every page.
"""

import re
from itertools import chain
from pathlib import Path

import pytest

from extproc.rate_limit_policy import policy
from quota.limit import Dimension, Mode, OnOutage, Unit, Window, requests_per_minute
from sidecar.commands.limit_option import parse_limit
from tests.docs.page import section
from tests.docs.plots import plots
from tests.support.values import held

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quota.md").read_text()

_CODE = re.compile(r"`([^`\n]+)`")
_NAMED = "|".join((*Unit, Unit.COST.value))
_LIMIT = re.compile(rf"(?<![\w:])(?:{_NAMED})(?:_per_\w+)?=[^\s`']+")


@pytest.mark.parametrize("text", sorted(set(_LIMIT.findall(PAGE))))
def test_every_limit_on_the_page_is_one(text: str) -> None:
    parse_limit(text.rstrip(".,;"))


def test_everything_that_a_limit_can_say_is_explained() -> None:
    explained = section(PAGE, "What a limit is")
    words = [*Unit, *Mode, *OnOutage, *Dimension]
    assert [word for word in words if f"`{word}`" not in explained and f"={word}" not in explained] == []
    written = [parse_limit(text) for text in _LIMIT.findall(explained)]
    assert {limit.window for limit in written} == set(Window)


def test_each_plot_is_shown() -> None:
    shown = re.findall(r"!\[.+\]\((images/[\w-]+\.svg)\)", PAGE)
    assert sorted(shown) == sorted(plots())


def test_the_headers_are_those_that_are_told() -> None:
    named = set(_CODE.findall(section(PAGE, "What a client is told")))
    known = policy(held(requests_per_minute(1)))
    told = chain.from_iterable(
        (group.limit, group.remaining, group.reset) for group in (*known.openai, *known.anthropic)
    )
    assert set(told) <= named
