"""What may one request of a plan come to? The options that say it, and how a person reads it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from authz.caps import Caps
from store.field_error import FieldError

MAX_STREAM, MAX_OUTPUT_TOKENS, MAX_RESPONSE_BYTES = "--max-stream", "--max-output-tokens", "--max-response-bytes"
_NONE = frozenset({"0", "none"})
_SPAN = re.compile(r"(?P<count>[0-9]{1,9})(?P<unit>[smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_WHOLE = re.compile(r"[0-9]{1,16}")
_SHOWN = 80


@dataclass(frozen=True, kw_only=True)
class CapOptions:
    """The caps that were asked for, as they were typed; None where nothing was."""

    max_stream: Annotated[
        str | None,
        typer.Option(
            MAX_STREAM, metavar="SPAN", help="How long one request may run at the Router: 90s, 10m, 2h; none for ever."
        ),
    ] = None
    max_output_tokens: Annotated[
        str | None,
        typer.Option(MAX_OUTPUT_TOKENS, metavar="N", help="How many tokens one request may write; none for any."),
    ] = None
    max_response_bytes: Annotated[
        str | None,
        typer.Option(MAX_RESPONSE_BYTES, metavar="N", help="How many bytes one answer may have; none for any."),
    ] = None

    def stream_seconds(self) -> int | None:
        """In seconds; 0 for none. Raises `FieldError`."""
        text = self.max_stream
        if text is None or text in _NONE:
            return None if text is None else 0
        found = _SPAN.fullmatch(text)
        if found is None:
            raise FieldError(MAX_STREAM, f"{text[:_SHOWN]!r} is not like 90s, 10m, 2h or 1d, or none")
        return int(found["count"]) * _SECONDS[found["unit"]]

    def output_tokens(self) -> int | None:
        """0 for none. Raises `FieldError`."""
        return _number(MAX_OUTPUT_TOKENS, self.max_output_tokens)

    def response_bytes(self) -> int | None:
        """0 for none. Raises `FieldError`."""
        return _number(MAX_RESPONSE_BYTES, self.max_response_bytes)

    def caps(self) -> Caps:
        """The caps of a new plan: none where nothing was asked for. Raises `FieldError`."""
        return Caps(
            stream_seconds=self.stream_seconds() or 0,
            output_tokens=self.output_tokens() or 0,
            response_bytes=self.response_bytes() or 0,
        )


def fields(caps: Caps) -> Iterator[tuple[str, str]]:
    """The caps that there are, as fields of their plan."""
    told = {
        "max_stream": span(caps.stream_seconds),
        "max_output_tokens": f"{caps.output_tokens:,}",
        "max_response_bytes": f"{caps.response_bytes:,}",
    }
    return ((name, text) for name, text in told.items() if text != "0")


def written(caps: Caps) -> str:
    """The caps on one line, in the words of the options."""
    told = {"stream": span(caps.stream_seconds), "output_tokens": caps.output_tokens, "bytes": caps.response_bytes}
    return " ".join(f"{name}={value}" for name, value in told.items() if value not in {0, "0"}) or "-"


def span(seconds: int) -> str:
    """A length of time in the largest unit that says it exactly; 0 without one."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _SECONDS[unit] == 0), "s")
    return f"{seconds // _SECONDS[unit]}{unit}" if seconds else "0"


def _number(option: str, text: str | None) -> int | None:
    if text is None or text in _NONE:
        return None if text is None else 0
    if not _WHOLE.fullmatch(text):
        raise FieldError(option, f"{text[:_SHOWN]!r} is no whole number, and not none")
    return int(text)
