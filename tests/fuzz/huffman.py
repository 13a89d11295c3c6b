"""Does every Huffman string get the answer that hpack gives?"""

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman

from transport import huffman
from transport.error_code import CompressionFault

LONGEST = 24
SEEDS = (
    b"www.example.com",
    b"\1" + bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff"),
    b"\xff\xff\xff\xff",
    b"\2\0\xf9\x0a\x7f\xff",
    b"\xff00000000",  # its code ends with a byte: eight bits of padding are too many
)
_CODES = [f"{code:0{length}b}" for code, length in zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)]


def check(data: bytes) -> None:
    """The bytes as a code; or as a text, for random bytes seldom hold long codes. Its code is cut off as well."""
    if data[:1] < b"\x80":
        _agree(data[1:])
        return
    text = data[1:]
    bits = "".join([_CODES[symbol] for symbol in text])
    padded = bits + "1" * (-len(bits) % 8)
    code = int(padded, 2).to_bytes(len(padded) // 8, "big") if padded else b""
    assert huffman.decode(code) == text
    _agree(code[:-1])
    _agree(code + data[:1])


def _agree(raw: bytes) -> None:
    ours: bytes | None
    theirs: bytes | None
    try:
        theirs = decode_huffman(raw)
    except HPACKDecodingError:
        theirs = None
    try:
        ours = huffman.decode(raw)
    except CompressionFault:
        ours = None
    assert ours == theirs, raw.hex()
