"""What came of a check? Passed, failed, or nothing to judge; and what was seen."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a check may come to."""

    PASS = "pass"  # noqa: S105 - a word for the terminal
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and in one line what was seen."""

    outcome: Outcome
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check done: its name, what the contract says, in which section of docs/router.md, and the verdict."""

    check: str
    outcome: Outcome
    seen: str
    contract: str
    section: str


def passed(seen: str) -> Verdict:
    """The contract is kept."""
    return Verdict(Outcome.PASS, _printable(seen))


def failed(seen: str) -> Verdict:
    """It is not."""
    return Verdict(Outcome.FAIL, _printable(seen))


def skipped(seen: str) -> Verdict:
    """There is nothing to judge: the Router does not offer it, or what came before failed."""
    return Verdict(Outcome.SKIP, _printable(seen))


def _printable(text: str) -> str:
    """What a Router wrote may move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
