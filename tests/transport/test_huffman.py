"""Huffman strings: all symbols, all of hpack's verdicts, and what RFC 7541 section 5.2 forbids."""

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from transport import huffman
from transport.error_code import CompressionFault, ErrorCode

_ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
_EOS = f"{REQUEST_CODES[256]:030b}"


def _code(symbol: int) -> str:
    return f"{REQUEST_CODES[symbol]:0{REQUEST_CODES_LENGTH[symbol]}b}"


def _octets(bits: str) -> bytes:
    """The bits, and ones up to the end of the last byte."""
    whole = bits + "1" * (-len(bits) % 8)
    return int(whole, 2).to_bytes(len(whole) // 8, "big")


def _hpacks_answer(raw: bytes) -> bytes | None:
    try:
        return decode_huffman(raw)
    except HPACKDecodingError:
        return None


def _our_answer(raw: bytes) -> bytes | None:
    try:
        return huffman.decode(raw)
    except CompressionFault:
        return None


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("", b""),
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("25a849e95ba97d7f", b"custom-key"),
        ("25a849e95bb8e8b4bf", b"custom-value"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
        (
            "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else ascii(value[:20]),
)
def test_the_examples_of_rfc_7541_decode(raw: str, text: bytes) -> None:
    assert huffman.decode(bytes.fromhex(raw)) == text


@pytest.mark.parametrize("symbol", range(256))
def test_every_symbol_decodes_alone_and_between_others(symbol: int) -> None:
    one = bytes((symbol,))
    assert huffman.decode(_octets(_code(symbol))) == one
    for shift in range(8):
        around = b"0" * shift
        text = around + one + around + one
        assert huffman.decode(_octets("".join(_code(each) for each in text))) == text


@pytest.mark.parametrize("other", range(8))
def test_padding_is_the_beginning_of_eos(other: int) -> None:
    # "0" is 00000: three bits of padding, of which only 111 is right.
    answer = _our_answer(bytes((other,)))
    assert answer == (b"0" if other == 0b111 else None)


def test_seven_bits_of_padding_are_the_most() -> None:
    # Zeros are of five bits: eight lengths of text, eight lengths of padding.
    for zeros in range(8):
        text = b":" + b"0" * zeros
        bits = "".join(_code(each) for each in text)
        assert huffman.decode(_octets(bits)) == text
        with pytest.raises(CompressionFault, match="padding"):
            huffman.decode(_octets(bits) + b"\xff")


@pytest.mark.parametrize("octets", [1, 2, 3, 4, 5, 100])
def test_padding_alone_is_too_long(octets: int) -> None:
    with pytest.raises(CompressionFault):
        huffman.decode(b"\xff" * octets)


@pytest.mark.parametrize("before", ["", "0", "00", "000", "x" * 50])
@pytest.mark.parametrize("after", ["", "0", "x" * 50])
def test_eos_is_no_part_of_a_string(before: str, after: str) -> None:
    bits = ["".join(_code(each) for each in text.encode()) for text in (before, after)]
    with pytest.raises(CompressionFault) as raised:
        huffman.decode(_octets(bits[0] + _EOS + bits[1]))
    assert raised.value.code is ErrorCode.COMPRESSION_ERROR


@given(st.binary(max_size=200))
def test_what_hpack_encodes_decodes(text: bytes) -> None:
    assert huffman.decode(_ENCODER.encode(text)) == text


@given(st.binary(max_size=60))
def test_any_bytes_get_the_answer_that_hpack_gives(raw: bytes) -> None:
    assert _our_answer(raw) == _hpacks_answer(raw)


@given(st.lists(st.integers(0, 256), max_size=40), st.integers(0, 7), st.sampled_from("01"))
def test_any_codes_cut_off_or_ended_by_eos_get_the_answer_that_hpack_gives(
    symbols: list[int], cut: int, padding: str
) -> None:
    # Random bytes seldom hold long codes.
    bits = "".join(_code(symbol) for symbol in symbols)
    bits = bits[: len(bits) - cut]
    bits += padding * (-len(bits) % 8)
    raw = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    assert _our_answer(raw) == _hpacks_answer(raw)


def test_the_rows_are_those_of_the_code_and_no_more() -> None:
    # White box: a prefix code of 257 symbols has 256 inner nodes, and bad strings must not add to them.
    for state in list(huffman._ROWS):
        # Any byte after the bits of a state fills its row, and half of those bytes are in error.
        for byte in (0x00, 0xFF, 0x5A):
            _our_answer(_octets(state + f"{byte:08b}"))
    assert len(huffman._ROWS) == 256
    assert {len(row) for row in huffman._ROWS.values()} <= {0, 256}
