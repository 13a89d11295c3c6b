"""What does the stand-in model say? A sentence that echoes the prompt, as many words as were asked for."""

from collections.abc import Iterator
from itertools import chain, cycle

ECHOED_WORDS = 5
ECHOED_LETTERS = 24

_OPENING = ("You", "asked:")
_FILLER = ("and", "this", "is", "a", "stand-in", "answer,", "said", "until", "it", "is", "long", "enough,")


def pieces(prompt: str, count: int) -> list[str]:
    """Say so many words, each with the space behind it except the last."""
    words = [*_OPENING, *_echo(prompt)]
    words += _FILLER * ((count - len(words)) // len(_FILLER) + 1)
    said = [f"{word} " for word in words[:count]]
    if said:
        said[-1] = words[count - 1]
    return said


def endless_pieces(prompt: str) -> Iterator[str]:
    """Say the same, and never stop."""
    return (f"{word} " for word in chain(_OPENING, _echo(prompt), cycle(_FILLER)))


def count_tokens(size: int) -> int:
    """Four bytes make a token: near enough for English, and the same on every machine."""
    return max(1, size // 4)


def _echo(prompt: str) -> list[str]:
    # A prompt may be megabytes: only its head is ever split into words.
    head = prompt[: ECHOED_WORDS * ECHOED_LETTERS * 2].split()[:ECHOED_WORDS]
    return [word[:ECHOED_LETTERS] for word in head]
