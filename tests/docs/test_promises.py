"""Is each promise of the documents proved: does its row name tests, with their files, and is it made once?

That the tests exist is seen by test_links.py, as of every page.
"""

import re
from pathlib import Path

import pytest

from tests.docs.page import rows, section

DOCS = Path(__file__).parents[2] / "docs"
TABLES = {
    "quota.md": "What is promised, and what shows it",
    "transport.md": "What is promised, and what shows it",
    "architecture.md": "What is promised of a request's life, and what shows it",
}
PROMISES = [
    (page, promise, proofs)
    for page, heading in TABLES.items()
    for promise, proofs in rows(section((DOCS / page).read_text(), heading))[1:]
]

_TEST = re.compile(r"tests/[\w/]+\.py::test_\w+")
_CODE = re.compile(r"`([^`\n]+)`")


@pytest.mark.parametrize(("promise", "proofs"), [row[1:] for row in PROMISES], ids=[row[1][:60] for row in PROMISES])
def test_each_promise_names_its_tests_with_their_files(promise: str, proofs: str) -> None:
    assert promise
    assert _CODE.findall(proofs), "nothing shows it"
    assert all(_TEST.fullmatch(code) for code in _CODE.findall(proofs))


@pytest.mark.parametrize("page", TABLES)
def test_no_promise_is_made_twice(page: str) -> None:
    promises = [promise for of, promise, _ in PROMISES if of == page]
    assert len(set(promises)) == len(promises)


@pytest.mark.parametrize("page", TABLES)
def test_no_promise_names_a_test_twice(page: str) -> None:
    named = [_CODE.findall(proofs) for of, _, proofs in PROMISES if of == page]
    assert all(len(set(tests)) == len(tests) for tests in named)
