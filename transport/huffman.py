"""Which bytes does a Huffman string of HPACK stand for? RFC 7541 section 5.2 and appendix B.

A state is a node of the code's tree: the bits read since the last whole symbol. A state's row holds, for each byte
that may come next, the state after it and the symbols that it completed. The code has 256 inner nodes, so all rows
together have 65,536 entries; a row is filled when it is first needed, which costs about 0.3 ms.
"""

from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from transport.error_code import CompressionFault

_Row = list[tuple["_Row", bytes]]

_EOS = 256
_SYMBOLS = {
    f"{code:0{length}b}": symbol
    for symbol, (code, length) in enumerate(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True))
}
_ROWS: dict[str, _Row] = {bits[:depth]: [] for bits in _SYMBOLS for depth in range(len(bits))}
_ROOT = _ROWS[""]
# No symbol may follow EOS: nothing leads out of this row, and no string may end in it.
_AFTER_EOS: _Row = []
_AFTER_EOS.extend([(_AFTER_EOS, b"")] * 256)
# "Padding strictly longer than 7 bits MUST be treated as a decoding error", as must padding that is no prefix of EOS,
# whose code is all ones. Rows are compared by identity: each leads to others and in the end to itself.
_ENDS = frozenset(id(_ROWS["1" * padding]) for padding in range(8))


def decode(raw: bytes) -> bytes:
    """Decode a whole string; raises CompressionFault where section 5.2 demands an error."""
    row = _ROOT
    pieces: list[bytes] = []
    append = pieces.append
    for byte in raw:
        try:
            row, piece = row[byte]
        except IndexError:
            row, piece = _filled(row)[byte]
        append(piece)
    if id(row) not in _ENDS:
        raise CompressionFault("a Huffman string holds EOS or ends in no padding")
    return b"".join(pieces)


def _filled(row: _Row) -> _Row:
    state = next(state for state, other in _ROWS.items() if other is row)
    row.extend(_step(state, byte) for byte in range(256))
    return row


def _step(state: str, byte: int) -> tuple[_Row, bytes]:
    """The row that follows, and the symbols that are complete then."""
    symbols = bytearray()
    for bit in f"{byte:08b}":
        state += bit
        symbol = _SYMBOLS.get(state)
        if symbol == _EOS:
            return _AFTER_EOS, b""
        if symbol is not None:
            symbols.append(symbol)
            state = ""
    return _ROWS[state], bytes(symbols)
