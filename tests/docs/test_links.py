"""Does everything exist that the documents name: files, headings, tests?"""

import re
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FOLDERS = "authz|quota|extproc|store|control|sidecar|wire|envoy|demo|tests|docs"

_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"`(?P<code>[^`\n]+)`")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_PATH = re.compile(rf"(?:{FOLDERS})/[\w./-]*")
_TEST = re.compile(r"(?:(?P<file>[\w./]+\.py)::)?(?P<name>test_[a-z0-9_]+)")
_DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@lru_cache
def _text(page: Path) -> str:
    return _FENCED.sub("", page.read_text())


@lru_cache
def _anchors(page: Path) -> set[str]:
    """Headings as GitHub names them: lower case, spaces to hyphens, other signs dropped."""
    found = _HEADING.findall(_text(page))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


@lru_cache
def _tests_of(file: Path) -> set[str]:
    return set(_DEFINED.findall(file.read_text()))


@lru_cache
def _all_tests() -> set[str]:
    return {name for file in (ROOT / "tests").rglob("test_*.py") for name in _tests_of(file)}


def _codes(page: Path) -> list[str]:
    return _CODE.findall(_text(page))


@page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert not broken


@page
def test_paths_exist(page: Path) -> None:
    paths = [code.partition("::")[0] for code in _codes(page)]
    assert not [path for path in paths if _PATH.fullmatch(path) and not (ROOT / path).exists()]


@page
def test_tests_exist(page: Path) -> None:
    missing = []
    for code in _codes(page):
        match = _TEST.fullmatch(code)
        if match is None:
            continue
        file = ROOT / match["file"] if match["file"] else None
        known = _all_tests() if file is None else _tests_of(file) if file.exists() else set()
        if match["name"] not in known:
            missing.append(code)
    assert not missing


def test_there_are_pages() -> None:
    assert len(PAGES) > len(FOLDERS.split("|"))
