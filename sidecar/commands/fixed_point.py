"""How is an exact decimal such as `$2.50` read and written? As a whole number of its smallest part, without floats."""

import re

_DECIMAL = re.compile(r"(?P<whole>[0-9]{1,16})(?:\.(?P<fraction>[0-9]{1,16}))?")
_MICROS = 6


def scaled(text: str, places: int) -> int | None:
    """The number times 10^places; None when it is no decimal with at most so many places."""
    found = _DECIMAL.fullmatch(text)
    if found is None:
        return None
    fraction = found["fraction"] or ""
    return None if len(fraction) > places else int(found["whole"] + fraction.ljust(places, "0"))


def plain(number: int, places: int, *, at_least: int = 0) -> str:
    """A number that `scaled` read, as text with as few places as say it, but `at_least` so many."""
    digits = str(number).rjust(places + 1, "0")
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :]
    shown = fraction.rstrip("0").ljust(at_least, "0")
    return f"{whole}.{shown}" if shown else whole


def micros(text: str) -> int | None:
    """Micro-dollars of `2.50` or `$2.50`; None when it is no amount, or finer than that."""
    return scaled(text.removeprefix("$"), _MICROS)


def dollars(amount: int) -> str:
    """Micro-dollars as `$2.50`."""
    return f"${plain(amount, _MICROS, at_least=2)}"
