"""What may an organization, a tenant, a plan or a key be called? Short, printable, and not like an id."""

from collections.abc import Iterable

from store.field_error import FieldError

MAX_LENGTH = 100
_LISTED_AT_MOST = 5
# A person names a tenant by name or by id: no name may look like an id.
_ID_PREFIXES = ("org_", "ten_")


def checked(field: str, name: str) -> str:
    """Return the name; raises `FieldError` when it cannot be one."""
    if not name or name != name.strip() or not name.isprintable() or len(name) > MAX_LENGTH:
        raise FieldError(
            field, f"must be 1 to {MAX_LENGTH} printable characters without spaces around, not {name[:50]!r}"
        )
    if name.startswith(_ID_PREFIXES):
        raise FieldError(field, f"must not begin like an id ({' or '.join(_ID_PREFIXES)}): {name!r}")
    return name


def listed(names: Iterable[str]) -> str:
    """Name the first few, and count the others, for an error's one line."""
    every = list(names)
    shown, others = ", ".join(every[:_LISTED_AT_MOST]), len(every) - _LISTED_AT_MOST
    return f"{shown} and {others:,} more" if others > 0 else shown
