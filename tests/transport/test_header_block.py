"""Header blocks: RFC 7541's examples, hpack as the oracle, and what is remembered of blocks that repeat."""

import string

import pytest
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKDecodingError
from hypothesis import given
from hypothesis import strategies as st

from transport import hpack_integer
from transport.error_code import CompressionFault, ConnectionFault, ErrorCode
from transport.header_block import Field, Fields, HeaderDecoder, HeaderListTooLarge, encode

_UNBOUNDED = 2**40
# Of which Envoy's first blocks are: without a dynamic table, literals "with incremental indexing" change nothing.
_HEAD = b"\x83\x86\x44\x06/Check\x41\x07sidecar"
_TAIL = b"\x40\x02te\x08trailers\x5f\x10application/grpc"


def _without_table() -> HeaderDecoder:
    decoder = HeaderDecoder()
    decoder.table_limit = 0
    assert decoder.decode(b"\x20") == ()
    return decoder


def _changing(value: bytes) -> bytes:
    return b"\x40\x0btraceparent" + bytes((len(value),)) + value


def _hpack(size: int = 4096) -> Decoder:
    decoder = Decoder(max_header_list_size=_UNBOUNDED)
    decoder.max_allowed_table_size = size
    return decoder


def _counts_for(fields: Fields) -> int:
    return sum(len(name) + len(value) + 32 for name, value in fields)


def _our_answer(decoder: HeaderDecoder, block: bytes) -> Fields | None:
    try:
        return decoder.decode(block)
    except CompressionFault:
        return None


def _hpacks_answer(decoder: Decoder, block: bytes) -> Fields | None:
    try:
        return tuple((bytes(field[0]), bytes(field[1])) for field in decoder.decode(block, raw=True))
    except HPACKDecodingError:
        return None


def _examples(*pairs: tuple[str, str]) -> list[tuple[bytes, Fields]]:
    """Blocks in hexadecimal, and their fields one per line."""
    return [(bytes.fromhex(block), tuple(_field(line) for line in text.split("\n"))) for block, text in pairs]


def _field(line: str) -> Field:
    name, value = line.rsplit(": ", 1) if "GMT" not in line else line.split(": ", 1)
    return name.encode(), value.encode()


_REQUESTS = (
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
    ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
)
_ENDING = "location: https://www.example.com"
_RESPONSES = (
    f":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n{_ENDING}",
    f":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\n{_ENDING}",
    (
        f":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\n{_ENDING}\n"
        "content-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
    ),
)


@pytest.mark.parametrize(
    ("size", "examples", "counted"),
    [
        pytest.param(
            4096,
            _examples(("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header")),
            [55],
            id="C.2.1",
        ),
        pytest.param(4096, _examples(("040c2f73616d706c652f70617468", ":path: /sample/path")), [0], id="C.2.2"),
        pytest.param(4096, _examples(("100870617373776f726406736563726574", "password: secret")), [0], id="C.2.3"),
        pytest.param(4096, _examples(("82", ":method: GET")), [0], id="C.2.4"),
        pytest.param(
            4096,
            _examples(
                ("828684410f7777772e6578616d706c652e636f6d", _REQUESTS[0]),
                ("828684be58086e6f2d6361636865", _REQUESTS[1]),
                ("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", _REQUESTS[2]),
            ),
            [57, 110, 164],
            id="C.3",
        ),
        pytest.param(
            4096,
            _examples(
                ("828684418cf1e3c2e5f23a6ba0ab90f4ff", _REQUESTS[0]),
                ("828684be5886a8eb10649cbf", _REQUESTS[1]),
                ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", _REQUESTS[2]),
            ),
            [57, 110, 164],
            id="C.4",
        ),
        pytest.param(
            256,
            _examples(
                (
                    (
                        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
                        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d"
                    ),
                    _RESPONSES[0],
                ),
                ("4803333037c1c0bf", _RESPONSES[1]),
                (
                    (
                        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
                        "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b20766572"
                        "73696f6e3d31"
                    ),
                    _RESPONSES[2],
                ),
            ),
            [222, 222, 215],
            id="C.5",
        ),
        pytest.param(
            256,
            _examples(
                (
                    (
                        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b"
                        "97c8e9ae82ae43d3"
                    ),
                    _RESPONSES[0],
                ),
                ("4883640effc1c0bf", _RESPONSES[1]),
                (
                    (
                        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdf"
                        "cd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
                    ),
                    _RESPONSES[2],
                ),
            ),
            [222, 222, 215],
            id="C.6",
        ),
    ],
)
def test_the_examples_of_rfc_7541_appendix_c(
    size: int, examples: list[tuple[bytes, Fields]], counted: list[int]
) -> None:
    decoder = HeaderDecoder(table_size=size)
    for (block, fields), table in zip(examples, counted, strict=True):
        assert decoder.decode(block) == fields
        # White box: the appendix states the table's size after each block.
        assert decoder._table._counted == table


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xbe", id="index beyond the static table, with nothing in the dynamic one"),
        pytest.param(b"\x7e\x01x", id="incremental literal with a name beyond the tables"),
        pytest.param(b"\x0f\x2f\x01x", id="literal with a name beyond the tables"),
        pytest.param(b"\xff\xff\xff\xff\xff\x7f", id="index of 35 bits"),
        pytest.param(b"\xff\x80\x80\x80\x80\x80\x00", id="six bytes of continuation"),
        pytest.param(b"\x00\x7f\x80\x80\x80\x80\x10" + b"x" * 200, id="length beyond the block"),
        pytest.param(b"\x00\x7f\xff\xff\xff\xff\x7f", id="length of 35 bits"),
        pytest.param(b"\x83\x20", id="size update after a field"),
        pytest.param(b"\x3f\xe2\x1f", id="size update to 4097 of 4096"),
        pytest.param(b"\x3f", id="cut off within a size update"),
        pytest.param(b"\x3f\xe1", id="cut off within a size update's last byte"),
        pytest.param(b"\x00", id="cut off before a name"),
        pytest.param(b"\x00\x04nam", id="cut off within a name"),
        pytest.param(b"\x00\x04name", id="cut off before a value"),
        pytest.param(b"\x00\x04name\x05valu", id="cut off within a value"),
        pytest.param(b"\x44\x7f", id="cut off within a length"),
        pytest.param(b"\x44\x81\x00", id="Huffman padded with zeros"),
    ],
)
def test_what_rfc_7541_forbids_ends_the_connection(block: bytes) -> None:
    for decoder in (HeaderDecoder(), HeaderDecoder(max_list_bytes=0)):
        with pytest.raises(ConnectionFault) as raised:
            decoder.decode(block)
        assert raised.value.code is ErrorCode.COMPRESSION_ERROR
    assert _hpacks_answer(_hpack(), block) is None


@pytest.mark.parametrize("zeros", [0, 1, 2, 3, 4])
def test_an_integer_may_be_written_longer_than_needed(zeros: int) -> None:
    value = b"v" * 127
    block = b"\x44\x7f" + b"\x80" * zeros + b"\x00" + value
    assert HeaderDecoder().decode(block) == ((b":path", value),)


def test_an_empty_block_has_no_fields() -> None:
    assert HeaderDecoder().decode(b"") == ()


# --- hpack as the oracle ---

_texts = st.binary(max_size=12) | st.sampled_from([b"x" * 126, b"x" * 127, b"x" * 128, b"x" * 300, b"y" * 4064])
_names = st.sampled_from([b":path", b":method", b"te", b"content-type", b"x-name"]) | _texts
_lists = st.lists(st.tuples(_names, _texts), max_size=6)


@st.composite
def _strings(draw: st.DrawFn) -> bytes:
    """A string literal, in plain or in Huffman's code."""
    text = draw(st.sampled_from([b"", b"a", b"00-af-01", b"x" * 130]) | st.binary(max_size=8))
    coded = Encoder().huffman_coder.encode(text)
    if draw(st.booleans()):
        return (bytes((0x80 | len(coded),)) if len(coded) < 127 else b"\xff" + bytes((len(coded) - 127,))) + coded
    return (bytes((len(text),)) if len(text) < 127 else b"\x7f" + bytes((len(text) - 127,))) + text


_with_index = st.sampled_from([b"\x82", b"\x83", b"\x86", b"\xbe", b"\xbf", b"\xc0"])
_named = st.sampled_from([b"\x44", b"\x5f", b"\x04", b"\x14", b"\x0f\x10", b"\x1f\x10", b"\x7e", b"\x0f\x2f"])
_unnamed = st.sampled_from([b"\x40", b"\x00", b"\x10"])
_literals = st.builds(bytes.__add__, _named, _strings()) | st.builds(
    lambda *parts: b"".join(parts), _unnamed, _strings(), _strings()
)
_updates = st.sampled_from([b"", b"", b"", b"\x20", b"\x3f\x21", b"\x3f\xe1\x1f", b"\x20\x3f\xe1\x1f"])
_mostly_right = st.builds(
    lambda update, fields: update + b"".join(fields), _updates, st.lists(_with_index | _literals, max_size=6)
)


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    block = bytearray(draw(_mostly_right))
    at = draw(st.integers(0, len(block)))
    block[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(block)


@st.composite
def _alike(draw: st.DrawFn) -> list[bytes]:
    """Blocks that repeat each other's pieces: what is remembered of one is tried on the next."""
    pieces = draw(st.lists(_with_index | _literals, min_size=2, max_size=5))
    blocks = []
    for _ in range(draw(st.integers(2, 8))):
        fields = list(pieces)
        for _ in range(draw(st.integers(0, 2))):
            fields[draw(st.integers(0, len(fields) - 1))] = draw(_literals)
        blocks.append(draw(_updates) + b"".join(fields) + draw(st.sampled_from([b"", b"", b"", b"\x00", b"\x83"])))
    return blocks


@given(st.lists(st.tuples(st.none() | st.integers(0, 4096), st.booleans(), _lists), max_size=8), st.booleans())
def test_what_hpack_encodes_decodes(steps: list[tuple[int | None, bool, list[Field]]], limited: object) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(max_list_bytes=_UNBOUNDED)
    for size, huffman, fields in steps:
        # hpack forgets an update when the same size is set again.
        if size is not None and size != encoder.header_table_size:
            encoder.header_table_size = size
            if limited:
                decoder.table_limit = size
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == tuple(fields)


@given(st.lists(st.binary(max_size=40) | _mostly_right | _damaged(), max_size=5) | _alike(), st.booleans())
def test_any_blocks_get_the_answers_that_hpack_gives(blocks: list[bytes], without_table: object) -> None:
    ours, theirs = HeaderDecoder(max_list_bytes=_UNBOUNDED), _hpack()
    if without_table:
        assert ours.decode(b"\x20") == _hpacks_answer(theirs, b"\x20") == ()
    for block in blocks:
        answer = _our_answer(ours, block)
        assert answer == _hpacks_answer(theirs, block)
        if answer is None:
            return
        # What is remembered of the block must not change what its repetition means.
        assert _our_answer(ours, block) == _hpacks_answer(theirs, block)


@given(st.lists(_mostly_right, max_size=6) | _alike(), st.integers(0, 300), st.booleans())
def test_a_list_beyond_the_limit_leaves_the_table_in_step(
    blocks: list[bytes], most: int, without_table: object
) -> None:
    ours, theirs = HeaderDecoder(max_list_bytes=most), _hpack()
    if without_table:
        assert ours.decode(b"\x20") == _hpacks_answer(theirs, b"\x20") == ()
    for block in blocks:
        expected = _hpacks_answer(theirs, block)
        try:
            fields = ours.decode(block)
        except CompressionFault:
            assert expected is None
            return
        except HeaderListTooLarge:
            assert expected is not None
            assert _counts_for(expected) > most
        else:
            assert fields == expected
            assert _counts_for(fields) <= most
        assert [entry for entry, _ in ours._table._entries] == list(theirs.header_table.dynamic_entries)


@given(_lists)
def test_hpack_decodes_what_is_encoded(fields: list[Field]) -> None:
    assert _hpacks_answer(_hpack(), encode(fields)) == tuple(fields)


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 16_510, 16_511, 100_000])
def test_a_string_of_any_length_is_encoded(length: int) -> None:
    fields = [(b"n" * length, b"v" * length), (b"content-type", b"v" * length)]
    assert _hpacks_answer(_hpack(), encode(fields)) == tuple(fields)


def test_what_is_encoded_asks_for_no_state() -> None:
    fields = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"0")]
    block = encode(fields)
    assert block == b"\x88\x0f\x10\x10application/grpc\x00\x0bgrpc-status\x010"
    assert encode(fields) == block
    assert encode([]) == b""


# --- the size of the dynamic table ---


@pytest.mark.parametrize("block", [b"", b"\x83", b"\x44\x01/", b"\x3f\xe1\x1f"])
def test_a_peer_that_keeps_a_larger_table_than_agreed_is_refused(block: bytes) -> None:
    decoder = HeaderDecoder()
    _our_answer(decoder, block)
    decoder.table_limit = 0
    with pytest.raises(CompressionFault):
        decoder.decode(block)


def test_the_smallest_limit_must_be_signalled_even_when_it_has_been_raised_again() -> None:
    def lowered_and_raised() -> HeaderDecoder:
        decoder = HeaderDecoder()
        assert decoder.decode(b"\x44\x02/a") == ((b":path", b"/a"),)
        for limit in (100, 50, 70, 4096):
            decoder.table_limit = limit
        return decoder

    assert lowered_and_raised().table_limit == 4096
    # 50, then 4096.
    decoder = lowered_and_raised()
    assert decoder.decode(b"\x3f\x13\x3f\xe1\x1f\xbe") == ((b":path", b"/a"),)
    assert decoder.decode(b"\xbe") == ((b":path", b"/a"),)
    # 0 is less than asked for; then 4096.
    with pytest.raises(CompressionFault):
        lowered_and_raised().decode(b"\x20\x3f\xe1\x1f\xbe")
    # No update, and one to 51. hpack knows the last limit only, and takes both.
    for block in (b"\x83", b"\x3f\x14\x83"):
        with pytest.raises(CompressionFault):
            lowered_and_raised().decode(block)
        theirs = _hpack()
        for limit in (100, 50, 70, 4096):
            theirs.max_allowed_table_size = limit
        assert _hpacks_answer(theirs, block) == ((b":method", b"POST"),)


def test_a_limit_that_the_table_keeps_anyway_asks_for_no_update() -> None:
    decoder = HeaderDecoder()
    assert decoder.decode(b"\x3f\x13") == ()
    for limit in (100, 50, 4096):
        decoder.table_limit = limit
    assert decoder.decode(b"\x83") == ((b":method", b"POST"),)


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = HeaderDecoder(table_size=64)
    assert decoder.decode(b"\x44\x02/a\xbe") == ((b":path", b"/a"),) * 2
    assert decoder.decode(b"\x44\x21" + b"x" * 33) == ((b":path", b"x" * 33),)
    with pytest.raises(CompressionFault):
        decoder.decode(b"\xbe")


def test_a_name_may_be_that_of_the_entry_which_its_field_evicts() -> None:
    decoder = HeaderDecoder(table_size=64)
    assert decoder.decode(b"\x40\x04name\x01a") == ((b"name", b"a"),)
    assert decoder.decode(b"\x7e\x01b") == ((b"name", b"b"),)
    assert decoder.decode(b"\xbe") == ((b"name", b"b"),)


# --- the limit of a list ---


def test_a_list_is_counted_as_rfc_9113_section_6_5_2_does() -> None:
    block = encode([(b"ab", b"cde"), (b"", b"")])
    assert HeaderDecoder(max_list_bytes=69).decode(block) == ((b"ab", b"cde"), (b"", b""))
    with pytest.raises(HeaderListTooLarge):
        HeaderDecoder(max_list_bytes=68).decode(block)


def test_a_block_that_repeats_one_large_entry_is_not_held_in_memory() -> None:
    decoder = HeaderDecoder()
    decoder.decode(b"\x44\x7f\x81\x1e" + b"x" * 3968)
    with pytest.raises(HeaderListTooLarge):
        decoder.decode(b"\xbe" * 60_000)
    # White box: what counts beyond the limit is not even collected on the way.
    fields: list[Field] = []
    decoder._count = 0
    assert decoder._read(b"\xbe" * 60_000, 0, 60_000, fields) == 60_000
    assert _counts_for(tuple(fields)) <= 16_384


def test_a_fault_after_the_limit_is_a_fault() -> None:
    with pytest.raises(CompressionFault):
        HeaderDecoder(max_list_bytes=10).decode(b"\x83\x83\x80")


# --- what is remembered ---


def test_an_equal_block_gives_the_same_tuple() -> None:
    decoder = _without_table()
    block = _HEAD + _changing(b"1") + _TAIL
    first = decoder.decode(block)
    assert decoder.decode(bytes(bytearray(block))) is first


def test_a_block_with_one_value_changed_is_decoded_alone() -> None:
    decoder = _without_table()
    for length, letter in enumerate(string.ascii_letters):
        value = letter.encode() * length
        fields = decoder.decode(_HEAD + _changing(value) + _TAIL)
        assert fields == HeaderDecoder().decode(_HEAD + _changing(value) + _TAIL)
        assert fields[4] == (b"traceparent", value)
    # White box: two blocks teach what surrounds the value.
    assert [(template.head, template.tail) for template in decoder._templates] == [(_HEAD, _TAIL)]


def _taught(*, most: int = 16_384) -> HeaderDecoder:
    decoder = HeaderDecoder(table_size=0, max_list_bytes=most)
    for value in (b"1", b"2"):
        decoder.decode(_HEAD + _changing(value) + _TAIL)
    assert decoder._templates
    return decoder


def test_bytes_like_the_known_end_may_be_the_end_of_another_value() -> None:
    value = b"x" + _TAIL
    block = _HEAD + b"\x83" * 5 + _changing(value)
    expected = HeaderDecoder().decode(block)
    assert expected[-1] == (b"traceparent", value)
    assert _taught().decode(block) == expected
    # What the end would have counted for, had it been that of the block, must not count.
    assert _taught(most=_counts_for(expected)).decode(block) == expected
    with pytest.raises(HeaderListTooLarge):
        _taught(most=_counts_for(expected) - 1).decode(block)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(_HEAD + _TAIL, id="nothing between"),
        pytest.param(_HEAD + _changing(b"3") + _changing(b"4") + _TAIL, id="more between"),
        pytest.param(_HEAD + _changing(b"3"), id="another end"),
        pytest.param(_HEAD, id="no end"),
        pytest.param(_TAIL, id="no beginning"),
        pytest.param(_HEAD[:-1], id="cut off"),
        pytest.param(_HEAD + b"\x20" + _TAIL, id="a size update between"),
        pytest.param(_HEAD + b"\x40" + _TAIL, id="cut off between"),
        pytest.param(_HEAD + b"\xbe" + _TAIL, id="an index beyond the table between"),
        pytest.param(b"\x20" + _HEAD + _changing(b"3") + _TAIL, id="after a size update"),
    ],
)
def test_a_block_like_a_known_one_means_what_it_would_alone(block: bytes) -> None:
    assert _our_answer(_taught(), block) == _our_answer(HeaderDecoder(table_size=0), block)


def test_blocks_known_without_a_table_are_learnt_anew_with_one() -> None:
    decoder = _without_table()
    blocks = [_HEAD + _changing(value) + _TAIL for value in (b"1", b"2", b"3")]
    for block in blocks:
        decoder.decode(block)
    decoder.table_limit = 4096
    assert decoder.decode(b"\x3f\xe1\x1f") == ()
    theirs = _hpack()
    for block in (blocks[0], b"\xbe\xc2", blocks[2], b"\xbe\xc2\xc7", blocks[0], b"\xbe\xc2\xc7"):
        assert decoder.decode(block) == _hpacks_answer(theirs, block)


def test_a_known_block_is_refused_while_an_update_is_due() -> None:
    block = _HEAD + _changing(b"1") + _TAIL
    for again in (block, _HEAD + _changing(b"3") + _TAIL):
        decoder = HeaderDecoder()
        # Nothing in these is indexed, so all of it is remembered.
        stateless = [
            each.replace(b"\x40", b"\x00").replace(b"\x44", b"\x04").replace(b"\x41", b"\x01")
            for each in (block, _HEAD + _changing(b"2") + _TAIL, again)
        ]
        for each in stateless:
            decoder.decode(each)
        decoder.table_limit = 0
        with pytest.raises(CompressionFault):
            decoder.decode(stateless[-1])


def test_what_is_remembered_is_bounded() -> None:
    # White box: a peer may send what it likes for as long as it likes.
    decoder = _without_table()
    most = dict.fromkeys(("_blocks", "_strings", "_templates", "_examples"), 0)
    coder = Encoder().huffman_coder
    for turn in range(1000):
        name = coder.encode(b"name-%d" % (turn // 3))
        value = coder.encode(b"value-%d" % turn)
        other = b"\x40" + bytes((0x80 | len(name),)) + name + bytes((0x80 | len(value),)) + value
        # Two blocks that differ in one field make a template; with fewer fields each time, no earlier one matches.
        decoder.decode(b"\x83" * (60 - turn // 2 % 12 * 5) + other + _TAIL)
        # And one that is like no other.
        decoder.decode(other)
        for cache in most:
            most[cache] = max(most[cache], len(getattr(decoder, cache)))
    assert most == {"_blocks": 64, "_strings": 256, "_templates": 8, "_examples": 4}


def test_what_is_long_is_not_remembered() -> None:
    decoder = HeaderDecoder(table_size=0, max_list_bytes=_UNBOUNDED)
    coded = Encoder().huffman_coder.encode(b"x" * 400)
    for size in (1024, 1025):
        decoder.decode(b"\x83" * size)
    for raw in (coded[:256], coded[:257]):
        value = raw[:-1] + b"\xf3"
        decoder.decode(b"\x44" + hpack_integer.write(len(value), 0x7F, 0x80) + value)
    # White box.
    assert {len(block) for block in decoder._blocks if b"\x83" in block} == {1024}
    assert {len(raw) for raw in decoder._strings} == {256}
