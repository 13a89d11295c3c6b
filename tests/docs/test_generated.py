"""Do the pages and pictures that are made from the code still say what the code says?"""

import pytest

from authz.refusal import Reason
from extproc.lifecycle import TRANSITIONS, Cause, State
from tests.docs.generate import DOCS, PAGES
from tests.docs.lifecycle_page import MEANINGS, REASONS, lifecycle
from tests.docs.page import COMMAND
from tests.docs.plots import plots


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    page = DOCS / name
    written = page.read_text() if page.exists() else ""
    assert written == PAGES[name](), f"docs/{name} is stale; run: {COMMAND}"


def test_the_pictures_are_up_to_date() -> None:
    pictures = plots()
    stale = [name for name, text in pictures.items() if not (DOCS / name).exists() or (DOCS / name).read_text() != text]
    assert not stale, f"run: {COMMAND}"
    assert {f"images/{file.name}" for file in (DOCS / "images").iterdir()} == set(pictures)


def test_every_state_and_cause_is_explained() -> None:
    assert set(MEANINGS) == set(State)
    assert set(REASONS) == set(Cause)


def test_the_picture_has_every_step_and_no_other() -> None:
    steps = {line.strip() for line in lifecycle().splitlines() if " --> " in line and "[*]" not in line}
    assert steps == {f"{state} --> {following}" for state, ways in TRANSITIONS.items() for following in ways}


def test_every_reason_has_its_row() -> None:
    page = PAGES["errors.md"]()
    assert all(f"| `{reason.code}` | {reason.status} |" in page for reason in Reason)
