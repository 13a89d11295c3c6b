"""Which models does a pattern stand for? It is a model's name, or the beginning of one and a `*`."""

import re

_PATTERN = re.compile(r"[A-Za-z0-9._:/@-]{1,200}\*?")


def parse(text: str) -> str:
    """The pattern; `ValueError`, for the person who wrote it, when it is none."""
    if not _PATTERN.fullmatch(text):
        raise ValueError(
            f"{text[:60]!r} is no model like gpt-5 or gpt-*: up to 200 letters, digits and ._:/@-, a * only at the end"
        )
    return text


def matches(pattern: str, model: str) -> bool:
    """Whether the pattern stands for the model. Case matters."""
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


def particularity(pattern: str) -> tuple[int, bool]:
    """How much of a model's name the pattern says. Of two that stand for a model, the greater says more."""
    return len(pattern.removesuffix("*")), not pattern.endswith("*")


def allows(patterns: tuple[str, ...], model: str) -> bool:
    """Whether one of the patterns stands for the model, or there are none."""
    return not patterns or any(matches(pattern, model) for pattern in patterns)
