"""What may an organization, a tenant, a plan or a key be called? Short, printable, and not like an id."""

from store.field_error import FieldError

MAX_LENGTH = 100
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
