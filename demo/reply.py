"""What have all parts of one answer in common, whatever its shape?"""

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from demo.ask import Dialect
from demo.script import Terminal

_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens an answer claims, and what is said of them beside; None is not said."""

    prompt: int
    completion: int
    cached: int | None = None
    cache_written: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The head of an answer; `usage` is None when none is to be told, `finish` is OpenAI's word.

    `terminal` is how an answer of the Responses API ends, `words` the comments that stand before a stream's last event.
    """

    dialect: Dialect
    ident: str
    created: int
    model: str
    finish: str
    padding: int
    usage: Usage | None
    choices: int = 1
    terminal: Terminal | None = None
    words: bytes = b""


def encode(value: object) -> bytes:
    """JSON text of a value."""
    return _ENCODER.encode(value)


@lru_cache(maxsize=4096)
def inner(piece: str) -> bytes:
    """JSON text of a piece, without its quotes."""
    return _ENCODER.encode(piece)[1:-1]
