"""Do header blocks get the answers that hpack gives, whatever was decoded before?

Two differences are meant. A list that is too large ends nothing, and leaves the table in step (RFC 9113 section 6.5.2).
And hpack knows the last SETTINGS_HEADER_TABLE_SIZE only: when a limit was lowered and raised again it does not demand
the update to the smallest (RFC 7541 section 4.2).
"""

from hpack import Decoder
from hpack.exceptions import HPACKDecodingError

from tests.fuzz.choices import Choices
from transport import hpack_integer
from transport.error_code import CompressionFault
from transport.header_block import Fields, HeaderDecoder, HeaderListTooLarge

LONGEST = 160
_UNBOUNDED = 2**40
_LIMITS = (0, 0, 31, 50, 64, 100, 1000, 4096, 5000)
_MOST = (_UNBOUNDED, _UNBOUNDED, _UNBOUNDED, 16_384, 200, 64, 0)
_MOST_STEPS = 24
_INDEXED = tuple(bytes((0x80 | index,)) for index in (2, 3, 6, 8, 61, 62, 63, 64, 70))
_NAMED = (b"\x44", b"\x5f", b"\x04", b"\x14", b"\x0f\x10", b"\x1f\x10", b"\x7e", b"\x7f\x00", b"\x0f\x2f", b"\x0f\x30")
_UNNAMED = (b"\x40", b"\x00", b"\x10")
_TEXTS = (b"", b"a", b"te", b"00-af-01", b"x" * 130, b"y" * 300, b"z" * 4064, b"x" * 100)
# Huffman's code of "a", of "www.example.com", of nothing, and two that are none.
_CODED = (b"\x1f", bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff"), b"", b"\x00", b"\xff\xff")
_UPDATES = (
    b"",
    b"",
    b"",
    b"",
    b"\x20",
    b"\x3f\x13",
    b"\x3f\x21",
    b"\x3f\xe1\x1f",
    b"\x20\x3f\xe1\x1f",
    b"\x3f\xe2\x1f",
)
_CALL = b"\x03\x04\x00\x01\x00\x02\x01\x00\x03\x01\x04\x02\x02\x03\x00"
SEEDS = (
    b"\x00\x00" + _CALL + b"\x02\x01\x04\x01\x00",
    b"\x00\x01\x02\x03\x82\x86\x84\x02\x05\x44\x03/ab\xbe",
    b"\x04\x01\x00\x02\x00\x07\x02\x02\x20\x83" + _CALL * 3,
    b"\x00\x00\x02\x0d\x40\x0acustom-key\x01v\x02\x01\xbe\x01\x02\x02\x05\x3f\x13\xbe",
    # Without a table and with one: what is remembered of the first must not serve for the second.
    b"\0\1\3\0\0\2\0\2\1n\2\1v\1\7\3\7\0\0\1\0\1\0\3\0",
    # A limit of 50, one of 64, an update to 64.
    b"\0\0\1\3\1\4\3\6\0\0\1",
    # Two entries that fill a table of 64.
    b"\0\0\3\6\1\2\0\2\0\2\0\2\0\2\0\2\0",
    # An integer with as many bytes as one may have, and with one more.
    b"\0\0\2\6\x3f\x80\x80\x80\x80\0\2\7\x3f\x80\x80\x80\x80\x80\0",
    # Three blocks alike, and a fourth whose changed value is too long by what comes after it.
    b"\4\1\3\0\2\0\1\4\2\1a\0\2\0\1\2\4\2\1b\0\1\2\4\2\1c\0\1\2\4\1\7",
)


def check(data: bytes) -> None:
    choices = Choices(data)
    both = _Both(choices.pick(_MOST))
    if choices.yes():
        both.limit(0)
        assert both.block(b"\x20")
    blocks = [[b"\x83"]]
    for _ in range(_MOST_STEPS):
        if not choices:
            return
        action = choices.below(5)
        if action == 1:
            both.limit(choices.pick(_LIMITS))
            continue
        if action == 0:  # like one before
            fields = [*choices.pick(blocks)]
            at = choices.below(len(fields))
            fields[at] = _field(choices)
        elif action == 2:
            fields = [choices.take(48)]
        else:
            fields = [choices.pick(_UPDATES), *(_field(choices) for _ in range(1 + choices.below(6)))]
        blocks.append(fields)
        block = b"".join(fields)
        # What is remembered of it must not change what its repetition means.
        if not (both.block(block) and both.block(block)):
            return


def _field(choices: Choices) -> bytes:
    kind = choices.below(5)
    if kind == 0:
        return choices.pick(_INDEXED)
    if kind == 1:
        return choices.pick(_NAMED) + _string(choices)
    if kind == 2:
        return choices.pick(_UNNAMED) + _string(choices) + _string(choices)
    if kind == 3:
        return choices.take(6)
    return b"\x40\x0btraceparent" + _string(choices)


def _string(choices: Choices) -> bytes:
    kind = choices.below(4)
    if kind == 0:
        code = choices.pick(_CODED)
        return hpack_integer.write(len(code), 0x7F, 0x80) + code
    text = choices.pick(_TEXTS) if kind == 1 else choices.take(12)
    return hpack_integer.write(len(text), 0x7F) + text


class _Both:
    """A decoder of ours and one of hpack's, and what section 4.2 demands of the next block."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ours = HeaderDecoder(max_list_bytes=most)
        self._theirs = Decoder(max_header_list_size=_UNBOUNDED)
        self._due: int | None = None

    def limit(self, limit: int) -> None:
        self._ours.table_limit = limit
        self._theirs.max_allowed_table_size = limit
        if limit < self._theirs.header_table_size:
            self._due = limit if self._due is None else min(limit, self._due)

    def block(self, block: bytes) -> bool:
        """Decode it with both, and maybe alone; whether it was right."""
        alone = self._alone(block)
        expected = None if self._lacks_update(block) else self._hpacks_answer(block)
        ours = _answer(self._ours, block)
        if alone is not None:
            assert ours == alone
        if expected is None:
            assert ours is None, block.hex()
            return False
        if sum(len(name) + len(value) + 32 for name, value in expected) > self._most:
            assert ours == "too large", block.hex()
        else:
            assert ours == expected, block.hex()
        self._due = None
        # White box: what later blocks may refer to.
        assert [entry for entry, _ in self._ours._table._entries] == list(self._theirs.header_table.dynamic_entries)
        return True

    def _alone(self, block: bytes) -> "Fields | str | None":
        """What a decoder says that has decoded nothing before, where that must make no difference."""
        if self._due is not None or self._ours.table_limit or self._theirs.header_table_size:
            return None
        return _answer(HeaderDecoder(table_size=0, max_list_bytes=self._most), block)

    def _lacks_update(self, block: bytes) -> bool:
        if self._due is None:
            return False
        if not block or block[0] & 0xE0 != 0x20:
            return True
        try:
            return hpack_integer.read(block, 0, 0x1F)[0] > self._due
        except (IndexError, CompressionFault):
            return True

    def _hpacks_answer(self, block: bytes) -> Fields | None:
        try:
            return tuple((bytes(field[0]), bytes(field[1])) for field in self._theirs.decode(block, raw=True))
        except HPACKDecodingError:
            return None


def _answer(decoder: HeaderDecoder, block: bytes) -> "Fields | str | None":
    try:
        return decoder.decode(block)
    except HeaderListTooLarge:
        return "too large"
    except CompressionFault:
        return None
