"""Which header fields have an index? RFC 7541 section 2.3: those of the static table, then those of the dynamic one."""

from collections import deque

from hpack.table import HeaderTable

from transport.error_code import CompressionFault

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]
Counted = tuple[Field, int]

STATIC: Fields = HeaderTable.STATIC_TABLE
FIRST_DYNAMIC = len(STATIC) + 1
_OVERHEAD_BYTES = 32


def counted(field: Field) -> Counted:
    """A field and what it counts for, in the table (section 4.1) as in a list of fields (RFC 9113 section 6.5.2)."""
    name, value = field
    return field, len(name) + len(value) + _OVERHEAD_BYTES


class DynamicTable:
    """Section 2.3.2: the newest entry comes first. `size` is the most that its entries may count for."""

    __slots__ = ("_counted", "_entries", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._counted = 0
        self._entries: deque[Counted] = deque()

    def entry(self, index: int) -> Counted:
        """Counted from 0, the newest; raises CompressionFault beyond the oldest."""
        if index >= len(self._entries):
            raise CompressionFault(f"no entry {index} in a dynamic table of {len(self._entries)}")
        return self._entries[index]

    def insert(self, entry: Counted) -> None:
        """Section 4.4: an entry that is larger than the table empties it, and is no error."""
        size = entry[1]
        self._shrink_to(self.size - size)
        if size <= self.size:
            self._entries.appendleft(entry)
            self._counted += size

    def resize(self, size: int) -> None:
        """Section 4.3."""
        self.size = size
        self._shrink_to(size)

    def _shrink_to(self, size: int) -> None:
        while self._entries and self._counted > size:
            self._counted -= self._entries.pop()[1]
