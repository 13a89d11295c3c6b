"""Are the numbers of a usage object such that somebody can be charged by them?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.router_check.answer import inner

# Beyond it a double skips integers, and Envoy's metadata holds doubles.
_TOO_MANY = 2**53
_INPUTS, _OUTPUTS = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")
_CACHES = ("cache_read_input_tokens", "cache_creation_input_tokens")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a usage object says; None is not said. `reasoning` are those of the output that nobody sees."""

    input: int | None
    output: int | None
    reasoning: int = 0

    def __str__(self) -> str:
        said = ((self.input, "in"), (self.output, "out"))
        return " and ".join(f"{number} tokens {way}" for number, way in said if number is not None)


def read_usage(usage: Mapping[str, Any]) -> Tokens | str:
    """The tokens of a usage object, or what is wrong with it."""
    names = (*_INPUTS, *_OUTPUTS, *_CACHES, "total_tokens")
    for name in names:
        if usage.get(name) is not None and not _is_count(usage[name]):
            return f"{name} is {usage[name]!r}, not a whole number from 0 to 2^53"
    if sum(usage.get(name) is not None for name in _INPUTS) > 1:
        return "both prompt_tokens and input_tokens are said"
    tokens = Tokens(_first(usage, _INPUTS), _first(usage, _OUTPUTS), _part(usage, _OUTPUTS, "reasoning_tokens"))
    return _fault(usage, tokens) or tokens


def _fault(usage: Mapping[str, Any], tokens: Tokens) -> str:
    total = usage.get("total_tokens")
    if total is not None and total != (tokens.input or 0) + (tokens.output or 0):
        return f"total_tokens is {total}, the sum of {tokens} is another"
    if tokens.reasoning > (tokens.output or 0):
        return f"reasoning_tokens are {tokens.reasoning}, of {tokens}"
    cached = _part(usage, _INPUTS, "cached_tokens")
    if cached > (tokens.input or 0):
        return f"cached_tokens are {cached}, of {tokens}"
    return ""


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _TOO_MANY


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((usage[name] for name in names if usage.get(name) is not None), None)


def _part(usage: Mapping[str, Any], wholes: tuple[str, ...], name: str) -> int:
    said = [inner(usage, f"{whole}_details", name) for whole in wholes]
    return sum(number for number in said if _is_count(number))
