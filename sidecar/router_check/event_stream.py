"""Which events and comments does the body of a stream hold (WHATWG HTML, 9.2.6)?"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sidecar.router_check.answer import json_object

# Lines end with LF or CRLF: the gateway does not look for a CR alone.
_BLANK_LINE = re.compile(rb"(?<=\n)\r?\n")
DONE = "[DONE]"


@dataclass(frozen=True)
class Event:
    """One block of a stream: an event's name and data, both empty where there are comments alone.

    `comments` are whole lines, the colon included.
    """

    data: str
    name: str = ""
    comments: tuple[str, ...] = ()

    @cached_property
    def fields(self) -> dict[str, Any] | None:
        """The JSON object in the data."""
        return json_object(self.data)

    @property
    def type(self) -> str:
        """What the event calls itself in its data; empty when it does not."""
        return str((self.fields or {}).get("type", ""))


@dataclass(frozen=True)
class EventStream:
    """A stream's blocks, and what stands behind the last blank line."""

    blocks: tuple[Event, ...]
    rest: bytes

    @property
    def events(self) -> tuple[Event, ...]:
        """The blocks with data."""
        return tuple(block for block in self.blocks if block.data)


def read_stream(body: bytes) -> EventStream:
    """Take the body of a stream apart."""
    *blocks, rest = _BLANK_LINE.split(body)
    return EventStream(tuple(_block(block) for block in blocks), rest)


def _block(block: bytes) -> Event:
    lines = block.decode("utf-8", "replace").splitlines()
    data = [line.removeprefix("data:").removeprefix(" ") for line in lines if line.startswith("data:")]
    names = [line.removeprefix("event:").strip() for line in lines if line.startswith("event:")]
    comments = tuple(line for line in lines if line.startswith(":"))
    return Event("\n".join(data), names[-1] if names else "", comments)
