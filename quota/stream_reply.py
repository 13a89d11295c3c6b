"""What does Redis answer when streams are read?"""

from typing import Any

Entry = tuple[str, dict[bytes, bytes]]
"""Its id, and its fields."""


def entries_of(answer: Any) -> dict[str, list[Entry]]:
    """What XREAD answered, by stream: nothing, a map (RESP3) or pairs (RESP2)."""
    pairs = answer.items() if isinstance(answer, dict) else answer or ()
    return {stream.decode(): [entry(each) for each in entries] for stream, entries in pairs}


def entry(raw: Any) -> Entry:
    """One entry, as XRANGE lists them."""
    entry_id, flat = raw
    return entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True))


def place_of(entry_id: str) -> tuple[int, int]:
    """An id as something that can be compared."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number)
