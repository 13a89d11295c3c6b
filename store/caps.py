"""Which caps can a plan have? Read from its row, and refused where they make no sense."""

from typing import Any

import asyncpg
import msgspec

from authz.caps import Caps
from store.field_error import FieldError

CAPS = tuple(Caps.__struct_fields__)
# Of `plans`.
_COLUMNS = tuple(f"max_{name}" for name in CAPS)
# A month; as many tokens as the ledger takes from a Router; a terabyte. Beyond lies a slip of the finger.
_MOST = {"stream_seconds": 31 * 86_400, "output_tokens": 1_000_000_000, "response_bytes": 10**12}


def caps_of(row: asyncpg.Record) -> Caps:
    """The caps in a row with the plan's columns."""
    return Caps(**{name: row[column] for name, column in zip(CAPS, _COLUMNS, strict=True)})


def as_columns(caps: Caps) -> dict[str, Any]:
    """The values of the plan's columns, by their names; 0 stands for no such bound."""
    return dict(zip(_COLUMNS, msgspec.structs.astuple(caps), strict=True))


def checked_caps(caps: Caps) -> Caps:
    """Return the caps; raises `FieldError`, which names the column, for one that is out of bounds."""
    for column, name in zip(_COLUMNS, CAPS, strict=True):
        value = getattr(caps, name)
        if not 0 <= value <= _MOST[name]:
            raise FieldError(column, f"must be from 0, for none, to {_MOST[name]}, not {value}")
    return caps
