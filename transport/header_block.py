"""Which header fields does a block of HPACK hold, and how is a list of fields written? RFC 7541.

With a table of size 0, which we announce, no block depends on another and a peer's repeat: often whole, often but for
one value, such as a trace id. What repeats is decoded once.
"""

from collections import deque
from collections.abc import Iterable
from itertools import takewhile
from operator import eq
from typing import NamedTuple, TypeVar

from transport import hpack_integer, huffman
from transport.error_code import CompressionFault
from transport.header_table import FIRST_DYNAMIC, STATIC, Counted, DynamicTable, Field, Fields, counted

__all__ = ["Field", "Fields", "HeaderDecoder", "HeaderListTooLarge", "encode"]

# Section 6: a field's first byte, and which of its bits hold an integer or the beginning of one.
_INDEXED, _INDEX_BITS = 0x80, 0x7F
_INCREMENTAL, _INCREMENTAL_NAME_BITS = 0x40, 0x3F
_SIZE_UPDATE, _SIZE_UPDATE_MASK, _SIZE_BITS = 0x20, 0xE0, 0x1F
_OTHER_NAME_BITS = 0x0F
# Section 5.2: a string's first byte.
_HUFFMAN, _LENGTH_BITS = 0x80, 0x7F

_LONGEST_CACHED_BLOCK, _MOST_CACHED_BLOCKS = 1024, 64
_LONGEST_CACHED_STRING, _MOST_CACHED_STRINGS = 256, 256
_MOST_EXAMPLES, _MOST_TEMPLATES, _MOST_CHANGING_FIELDS = 4, 8, 3

# By a field's first byte: the field, where that byte is the whole of it.
_WHOLE: list[Counted | None] = [None] * 256
_WHOLE[_INDEXED + 1 : _INDEXED + FIRST_DYNAMIC] = map(counted, STATIC)

_Value = TypeVar("_Value")


class HeaderListTooLarge(Exception):
    """A list of fields beyond our SETTINGS_MAX_HEADER_LIST_SIZE. The connection can go on."""


class _Template(NamedTuple):
    """What stands before and after fields that change. The dynamic table plays no part in it."""

    head: bytes
    before: Fields
    before_size: int
    tail: bytes
    after: Fields
    after_size: int


class HeaderDecoder:
    """Decodes one connection's blocks, in their order.

    `table_size` is the dynamic table's size in bytes at first, `max_list_bytes` what a list of fields may count for.
    """

    def __init__(self, *, table_size: int = 4096, max_list_bytes: int = 16384) -> None:
        self._table = DynamicTable(table_size)
        self._table_limit = table_size
        self._max_list_bytes = max_list_bytes
        self._update_due: int | None = None
        # Of the block that is being decoded: what its fields count for, and whether the dynamic table plays no part.
        self._count = 0
        self._stateless = True
        self._strings: dict[bytes, bytes] = {}
        self._blocks: dict[bytes, Fields] = {}
        self._templates: list[_Template] = []
        self._examples: deque[Fields] = deque(maxlen=_MOST_EXAMPLES)

    @property
    def table_limit(self) -> int:
        """The SETTINGS_HEADER_TABLE_SIZE that the peer has acknowledged."""
        return self._table_limit

    @table_limit.setter
    def table_limit(self, limit: int) -> None:
        self._table_limit = limit
        if limit < self._table.size:
            # Section 4.2: the next block begins with an update to the smallest limit since the last block.
            self._update_due = limit if self._update_due is None else min(limit, self._update_due)
            self._forget_blocks()

    def decode(self, block: bytes) -> Fields:
        """Decode a whole block; an equal block may give the same tuple again.

        Raises CompressionFault, after which the decoder is of no use, or HeaderListTooLarge, after which it is.
        """
        fields = self._blocks.get(block)
        return self._decode(block) if fields is None else fields

    def _decode(self, block: bytes) -> Fields:
        self._stateless = True
        try:
            fields = self._by_template(block) or self._from_scratch(block)
        except IndexError:
            raise CompressionFault("a header block ends within a field") from None
        if self._count > self._max_list_bytes:
            raise HeaderListTooLarge(f"{self._count} bytes of header fields")
        if self._stateless and len(block) <= _LONGEST_CACHED_BLOCK:
            _keep(self._blocks, block, fields, _MOST_CACHED_BLOCKS)
        return fields

    def _by_template(self, block: bytes) -> Fields | None:
        for head, before, before_size, tail, after, after_size in self._templates:
            at, stop = len(head), len(block) - len(tail)
            if at <= stop and block.startswith(head) and block.endswith(tail):
                self._count = before_size
                fields = [*before]
                at = self._read(block, at, stop, fields)
                if at == stop:
                    self._count += after_size
                    return (*fields, *after)
                # What looks like the tail begins within a field.
                self._read(block, at, len(block), fields)
                return tuple(fields)
        return None

    def _from_scratch(self, block: bytes) -> Fields:
        self._count = 0
        read: list[Field] = []
        self._read(block, self._after_size_updates(block), len(block), read)
        fields = tuple(read)
        if self._stateless and len(block) <= _LONGEST_CACHED_BLOCK and self._count <= self._max_list_bytes:
            self._learn(block, fields)
        return fields

    def _learn(self, block: bytes, fields: Fields) -> None:
        """Make a template of what it has in common with an earlier block, when little differs."""
        for example in self._examples:
            before = _common(fields, example)
            after = min(_common(fields[::-1], example[::-1]), len(fields) - before)
            changing = len(fields) - before - after
            if before and 0 < changing <= _MOST_CHANGING_FIELDS:
                self._add_template(block, fields, before, before + changing)
                return
        self._examples.append(fields)

    def _add_template(self, block: bytes, fields: Fields, start: int, stop: int) -> None:
        ends = [0]
        while ends[-1] < len(block):
            ends.append(self._field(block, ends[-1])[1])
        before, after = fields[:start], fields[stop:]
        if len(self._templates) >= _MOST_TEMPLATES:
            self._templates.clear()
        self._templates.append(
            _Template(block[: ends[start]], before, _total(before), block[ends[stop] :], after, _total(after))
        )

    def _forget_blocks(self) -> None:
        """What changes nothing while the table has no room may do so when it has."""
        self._blocks.clear()
        self._templates.clear()

    def _after_size_updates(self, block: bytes) -> int:
        """Where the fields begin. Section 4.2 has encoders send two updates at most; any number is taken."""
        at = 0
        while at < len(block) and block[at] & _SIZE_UPDATE_MASK == _SIZE_UPDATE:
            size, at = hpack_integer.read(block, at, _SIZE_BITS)
            if size > (self._table_limit if self._update_due is None else self._update_due):
                raise CompressionFault(f"a dynamic table of {size} bytes is larger than agreed")
            self._update_due = None
            self._table.resize(size)
            self._stateless = False
            self._forget_blocks()
        if self._update_due is not None:
            raise CompressionFault("a header block does not begin with the dynamic table size update that is due")
        return at

    def _read(self, block: bytes, at: int, stop: int, fields: list[Field]) -> int:
        """Read up to there, or to the end of the field around it; beyond the limit none is kept, but each decoded."""
        count, most = self._count, self._max_list_bytes
        while at < stop:
            known = _WHOLE[block[at]]
            if known is None:
                (field, size), at = self._field(block, at)
            else:
                field, size = known
                at += 1
            count += size
            if count <= most:
                fields.append(field)
        self._count = count
        return at

    def _field(self, block: bytes, at: int) -> tuple[Counted, int]:
        """A field (section 6), and where the next one begins."""
        first = block[at]
        if first >= _INDEXED:
            index, at = hpack_integer.read(block, at, _INDEX_BITS)
            return self._entry(index), at
        if first & _SIZE_UPDATE_MASK == _SIZE_UPDATE:
            raise CompressionFault("a dynamic table size update after a field")
        bits = _INCREMENTAL_NAME_BITS if first >= _INCREMENTAL else _OTHER_NAME_BITS
        if first & bits:
            index, at = hpack_integer.read(block, at, bits)
            name = self._entry(index)[0][0]
        else:
            name, at = self._string(block, at + 1)
        value, at = self._string(block, at)
        entry = counted((name, value))
        if first >= _INCREMENTAL and self._table.size:
            self._stateless = False
            self._table.insert(entry)
        return entry, at

    def _entry(self, index: int) -> Counted:
        """Section 2.3.3: one address space for both tables."""
        if index == 0:
            raise CompressionFault("a field of index 0")
        if index < FIRST_DYNAMIC:
            return counted(STATIC[index - 1])
        self._stateless = False
        return self._table.entry(index - FIRST_DYNAMIC)

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        """A string (section 5.2), and where it ends."""
        first = block[at]
        length = first & _LENGTH_BITS
        if length == _LENGTH_BITS:
            length, at = hpack_integer.read(block, at, _LENGTH_BITS)
        else:
            at += 1
        stop = at + length
        if stop > len(block):
            raise CompressionFault("a header block ends within a string")
        raw = block[at:stop]
        if first < _HUFFMAN:
            return raw, stop
        text = self._strings.get(raw)
        if text is None:
            text = huffman.decode(raw)
            if length <= _LONGEST_CACHED_STRING:
                _keep(self._strings, raw, text, _MOST_CACHED_STRINGS)
        return text, stop


def _keep(cache: dict[bytes, _Value], key: bytes, value: _Value, most: int) -> None:
    """A full cache starts anew."""
    if len(cache) >= most:
        cache.clear()
    cache[key] = value


def _common(fields: Fields, others: Fields) -> int:
    """How many fields are equal from the start."""
    return sum(takewhile(bool, map(eq, fields, others)))


def _total(fields: Fields) -> int:
    return sum(counted(field)[1] for field in fields)


def encode(fields: Iterable[Field]) -> bytes:
    """Write a block that needs no state: static indexes, and literals that are not indexed."""
    return b"".join([_INDEXES.get(field) or _literal(*field) for field in fields])


def _literal(name: bytes, value: bytes) -> bytes:
    """Section 6.2.2."""
    start = _NAME_INDEXES.get(name) or b"\x00" + _plain(name)
    return start + _plain(value)


def _plain(text: bytes) -> bytes:
    return hpack_integer.write(len(text), _LENGTH_BITS) + text


_INDEXES = {field: hpack_integer.write(index, _INDEX_BITS, _INDEXED) for index, field in enumerate(STATIC, start=1)}
# Several entries may share a name; any of their indexes will do.
_NAME_INDEXES = {name: hpack_integer.write(index, _OTHER_NAME_BITS) for index, (name, _) in enumerate(STATIC, start=1)}
