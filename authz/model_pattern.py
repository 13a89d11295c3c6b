"""May a caller name this model? A pattern is a model's name, or the beginning of one and a `*`."""

import re

_PATTERN = re.compile(r"[A-Za-z0-9._:/@-]{1,200}\*?")


def parse(text: str) -> str:
    """The pattern; `ValueError`, for the person who wrote it, when it is none."""
    if not _PATTERN.fullmatch(text):
        raise ValueError(
            f"{text[:60]!r} is no model like gpt-5 or gpt-*: up to 200 letters, digits and ._:/@-, a * only at the end"
        )
    return text


def allows(patterns: tuple[str, ...], model: str) -> bool:
    """Whether the model matches one of the patterns, or there are none. Case matters."""
    return not patterns or any(
        model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern for pattern in patterns
    )
