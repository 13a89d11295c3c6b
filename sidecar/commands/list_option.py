"""What does a repeated option change? All values that are given are the whole list; `--clear-...` empties it."""

from store.field_error import FieldError


def replacement(what: str, values: list[str] | None, *, clear: bool) -> list[str] | None:
    """The list from now on; None when it is to stay as it is. Raises `FieldError` when both are asked for."""
    if clear and values:
        raise FieldError(f"--clear-{what}", "does not go with a new value, which takes the place of all former ones")
    if clear:
        return []
    return values or None
