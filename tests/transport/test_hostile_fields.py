"""What does a field block do that is no HPACK, or no request? RFC 7541; RFC 9113 sections 4.3, 8.1 to 8.3, 10.5.1."""

import hpack
import pytest

from tests.transport.hostile import connected, greeted
from tests.transport.hostile_outcome import Closed, Passed, Reset, case, holds
from tests.transport.hostile_server import Attacked, victim
from tests.transport.hostile_wire import (
    ACK,
    END_HEADERS,
    END_STREAM,
    PREFACE,
    Code,
    Kind,
    Setting,
    block,
    data,
    frame,
    headers,
    message,
    opening,
    request_fields,
    reset,
    settings,
)

__all__ = ["victim"]

_COMPRESSION, _CALM = Closed(Code.COMPRESSION_ERROR), Closed(Code.ENHANCE_YOUR_CALM)
_MALFORMED = Reset(Code.PROTOCOL_ERROR)
_BLOCK = block(request_fields("Echo"))
_OPEN = opening(1)
_LITERAL = b"\x00\x01a"
# A table of size 0, as is announced, or one that is not used.
_NO_TABLE = b"\x20"

GARBAGE = {
    "index 0": b"\x80",
    "index beyond both tables": b"\xbe",
    "the largest index of one octet": b"\xfe",
    "an index of 2^70": b"\xff" + b"\xff" * 10 + b"\x7f",
    "an index that does not end": b"\xff\x80\x80",
    "an index with zeros without end": b"\xff" + b"\x80" * 100 + b"\x00",
    "a name beyond both tables": b"\x7f\x20\x01a",
    "a name beyond both tables, not indexed": b"\x0f\x7f\x01a",
    "no value": _LITERAL,
    "half a name": b"\x00\x05abc",
    "half a value": _LITERAL + b"\x05abc",
    "a length that does not end": _LITERAL + b"\x7f\x80",
    "a length of 2^70": _LITERAL + b"\x7f" + b"\xff" * 10 + b"\x7f",
    "Huffman: EOS": _LITERAL + b"\x84\xff\xff\xff\xff",
    "Huffman: EOS after a symbol": _LITERAL + b"\x85\x1f\xff\xff\xff\xff",
    "Huffman: eight bits of padding": _LITERAL + b"\x82\x1f\xff",
    "Huffman: a whole octet of padding": _LITERAL + b"\x81\xff",
    "Huffman: padding of zeros": _LITERAL + b"\x81\x18",
    "Huffman: half a symbol": _LITERAL + b"\x81\xfe",
    "Huffman: in a name": b"\x00\x81\xff\x01a",
    "a table beyond the limit": b"\x3f\xe2\x1f",
    "a table of 2^70": b"\x3f" + b"\xff" * 10 + b"\x7f",
    "a size of a table that does not end": b"\x3f\x80",
    "a size of a table after a field": b"\x82\x20",
    "a size of a table at the end": _BLOCK[1:] + b"\x20",
}

FIELDS: dict[str, dict[bytes, bytes | None]] = {
    "an uppercase name": {b"X-Upper": b"1"},
    "a space in a name": {b"x y": b"1"},
    "a control character in a name": {b"x\x01": b"1"},
    "DEL in a name": {b"x\x7f": b"1"},
    "an octet beyond ASCII in a name": {b"x\xc3": b"1"},
    "a colon in a name": {b"x:y": b"1"},
    "a colon after a name": {b"x:": b"1"},
    "NUL in a value": {b"x": b"a\x00b"},
    "LF in a value": {b"x": b"a\nb"},
    "CR in a value": {b"x": b"a\rb"},
    "a space before a value": {b"x": b" a"},
    "a space after a value": {b"x": b"a "},
    "a tab before a value": {b"x": b"\ta"},
    "a tab after a value": {b"x": b"a\t"},
    "a value of a space": {b"x": b" "},
    "LF in the path": {b":path": b"/test.Service/Echo\n"},
    "connection": {b"connection": b"close"},
    "proxy-connection": {b"proxy-connection": b"close"},
    "keep-alive": {b"keep-alive": b"timeout=5"},
    "transfer-encoding": {b"transfer-encoding": b"chunked"},
    "upgrade": {b"upgrade": b"h2c"},
    "te: gzip": {b"te": b"gzip"},
    "te: trailers, gzip": {b"te": b"trailers, gzip"},
    "no method": {b":method": None},
    "no scheme": {b":scheme": None},
    "no path": {b":path": None},
    "an empty path": {b":path": b""},
    "a pseudo-header of answers": {b":status": b"200"},
    "an unknown pseudo-header": {b":unknown": b"1"},
    "a pseudo-header without a name": {b":": b"1"},
    "a protocol that nobody announced": {b":protocol": b"websocket"},
    "CONNECT with a path": {b":method": b"CONNECT"},
    "a content-length that is none": {b"content-length": b"many"},
    "a content-length below zero": {b"content-length": b"-1"},
}

_GOOD = list(request_fields("Echo"))
LISTS = {
    **{f"{name.decode()} twice": [(name, value), *_GOOD] for name, value in _GOOD[:4]},
    **{f"{name.decode()} late": [*(f for f in _GOOD if f[0] != name), (name, value)] for name, value in _GOOD[:4]},
    "nothing": [],
    "two content-lengths": [*_GOOD, (b"content-length", b"1"), (b"content-length", b"2")],
}

_BODY = message(b"hello")
BODIES: dict[str, tuple[bytes, bytes]] = {
    "more than announced": (b"9", data(1, _BODY, END_STREAM)),
    "more than announced, in two": (b"9", data(1, _BODY[:9]) + data(1, _BODY[9:])),
    "less than announced": (b"11", data(1, _BODY, END_STREAM)),
    "less, and trailers": (b"11", data(1, _BODY) + headers(1, [(b"x", b"1")], END_HEADERS | END_STREAM)),
    "none, and trailers": (b"11", headers(1, [(b"x", b"1")], END_HEADERS | END_STREAM)),
    "some, where none was announced": (b"0", data(1, _BODY)),
}

TRAILERS = {
    "without the end": headers(1, [(b"x", b"1")], END_HEADERS),
    "another request": opening(1),
    "a pseudo-header": headers(1, [(b":path", b"/")], END_HEADERS | END_STREAM),
    "a status": headers(1, [(b":status", b"200")], END_HEADERS | END_STREAM),
    "an uppercase name": headers(1, [(b"X", b"1")], END_HEADERS | END_STREAM),
    "LF in a value": headers(1, [(b"x", b"1\n")], END_HEADERS | END_STREAM),
    "connection": headers(1, [(b"connection", b"close")], END_HEADERS | END_STREAM),
}

LEGAL = {
    "no authority": headers(1, request_fields("Echo", {b":authority": None})),
    "host for authority": headers(1, request_fields("Echo", {b":authority": None, b"host": b"localhost"})),
    "https": headers(1, request_fields("Echo", {b":scheme": b"https"})),
    "no te": headers(1, request_fields("Echo", {b"te": None})),
    "an empty value": opening(1, x=b""),
    "octets beyond ASCII in a value": opening(1, x=b"\x80\xff"),
    "a space within a value": opening(1, x=b"a b\tc"),
    "every character of names": headers(1, [*_GOOD, (b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz", b"1")]),
    "content-length": opening(1, content_length=b"10") + data(1, _BODY[:4]) + data(1, _BODY[4:], END_STREAM),
    "content-length and empty DATA": opening(1, content_length=b"10") + data(1, _BODY) + data(1, b"", END_STREAM),
    "empty trailers": _OPEN + frame(Kind.HEADERS, 1, b"", END_HEADERS | END_STREAM),
    "Huffman": frame(Kind.HEADERS, 1, block(request_fields("Echo"), huffman=True), END_HEADERS),
    "sizes of the table twice": frame(Kind.HEADERS, 1, _NO_TABLE * 2 + _BLOCK[1:], END_HEADERS),
    "long integers": frame(Kind.HEADERS, 1, _BLOCK + b"\x00\x7f\x81\x80\x00" + b"a" * 128 + b"\x00", END_HEADERS),
    "never indexed": frame(Kind.HEADERS, 1, _BLOCK + b"\x10\x01a\x01b", END_HEADERS),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_hpack_ends_the_connection(victim: Attacked, name: str) -> None:
    attack = frame(Kind.HEADERS, 1, _NO_TABLE + _BLOCK[1:] + GARBAGE[name], END_HEADERS)
    await holds(victim, case(attack, _COMPRESSION))
    await holds(victim, case(frame(Kind.HEADERS, 1, _NO_TABLE + GARBAGE[name], END_HEADERS), _COMPRESSION))


@pytest.mark.parametrize(
    "before",
    [_OPEN, opening(1, "Deaf", END_HEADERS | END_STREAM), headers(1, request_fields("Echo", {b"X": b"1"}))],
    ids=["trailers", "half closed", "reset by the server"],
)
async def test_what_is_no_hpack_ends_the_connection_on_whatever_stream(victim: Attacked, before: bytes) -> None:
    for flags in (END_HEADERS, END_HEADERS | END_STREAM):
        await holds(victim, case(before + frame(Kind.HEADERS, 1, b"\xbe", flags), _COMPRESSION))
    await holds(victim, case(before + frame(Kind.HEADERS, 1) + frame(Kind.CONTINUATION, 1, b"\xbe", 4), _COMPRESSION))


async def test_a_smaller_table_that_was_acknowledged_must_be_begun_with(victim: Attacked) -> None:
    """Section 4.3.1: a block that follows, and does not begin with the new size, is a COMPRESSION_ERROR."""
    async with greeted(victim.path) as client:
        assert client.settings.get(Setting.HEADER_TABLE_SIZE) == 0
    await holds(victim, case(frame(Kind.HEADERS, 1, _BLOCK[1:], END_HEADERS), _COMPRESSION))
    await holds(victim, case(_OPEN + frame(Kind.HEADERS, 3, b"\x3f\x01" + _BLOCK[1:], END_HEADERS), _COMPRESSION))
    # Said once, it holds.
    await holds(victim, case(_OPEN + frame(Kind.HEADERS, 3, _BLOCK[1:], END_HEADERS), Passed()))


async def test_a_table_is_kept_whatever_becomes_of_the_streams(victim: Attacked) -> None:
    """Before it has acknowledged a smaller one, a client may use the first 4,096 octets (section 4.3.1)."""
    encoder = hpack.Encoder()

    def head(stream_id: int, changes: dict[bytes, bytes | None], flags: int = END_HEADERS) -> bytes:
        return frame(Kind.HEADERS, stream_id, encoder.encode(list(request_fields("Echo", changes))), flags)

    body = data(13, message(b"good"), END_STREAM)
    sent = PREFACE + settings()
    sent += head(1, {b"X": b"malformed"}) + head(1, {b"of-a-reset-stream": b"1"})
    sent += head(3, {b"content-type": b"text/plain"}) + head(5, {b":path": b"/unknown"}) + head(7, {}) + reset(7)
    sent += head(9, {}) + frame(Kind.HEADERS, 9, encoder.encode([(b"a-trailer", b"1")]), END_HEADERS | END_STREAM)
    sent += head(11, {b"too-large-%d" % at: b"x" * 3000 for at in range(6)})
    encoder.header_table_size = 100
    encoder.header_table_size = 4096
    known: dict[bytes, bytes | None] = {b"x-known": b"1"}
    async with connected(victim.path) as client:
        await client.send(sent + head(13, known) + body + head(15, known) + data(15, message(b"good"), END_STREAM))
        await client.until(lambda: client.streams[13].over and client.streams[15].over)
        assert [client.streams[n].messages for n in (13, 15)] == [[b"good"]] * 2
        await client.send(frame(Kind.SETTINGS, flags=ACK))
        encoder.header_table_size = 0
        await client.send(head(17, known) + data(17, message(b"good"), END_STREAM))
        await client.until(lambda: client.streams[17].over)
        assert client.streams[17].messages == [b"good"]
        assert client.goaway is None


@pytest.mark.parametrize("name", FIELDS)
async def test_a_malformed_field_ends_the_stream_alone(victim: Attacked, name: str) -> None:
    await holds(victim, case(headers(1, request_fields("Echo", FIELDS[name])), _MALFORMED))
    assert victim.started == 1, "of the call that proves that all is well"


@pytest.mark.parametrize("name", LISTS)
async def test_a_malformed_list_ends_the_stream_alone(victim: Attacked, name: str) -> None:
    await holds(victim, case(headers(1, LISTS[name]), _MALFORMED))


@pytest.mark.parametrize("method", ["Echo", "Unary"])
@pytest.mark.parametrize("name", BODIES)
async def test_a_body_is_as_long_as_its_content_length(victim: Attacked, name: str, method: str) -> None:
    length, sent = BODIES[name]
    await holds(victim, case(opening(1, method, content_length=length) + sent, _MALFORMED))


@pytest.mark.parametrize("name", TRAILERS)
async def test_malformed_trailers_end_the_stream_alone(victim: Attacked, name: str) -> None:
    await holds(victim, case(_OPEN + data(1, _BODY[:3]) + TRAILERS[name], _MALFORMED))


@pytest.mark.parametrize("name", LEGAL)
async def test_what_is_unusual_is_no_fault(victim: Attacked, name: str) -> None:
    await holds(victim, case(LEGAL[name], Passed()))


async def test_the_same_content_length_twice_is_one_or_a_fault(victim: Attacked) -> None:
    """RFC 9110 section 8.6 leaves it to the recipient."""
    twice = headers(1, [*_GOOD, (b"content-length", b"10"), (b"content-length", b"10")])
    await holds(victim, case(twice + data(1, _BODY, END_STREAM), Passed(), _MALFORMED))


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("where", ["request", "trailers"])
async def test_a_list_larger_than_announced_ends_the_stream_alone(victim: Attacked, where: str, pieces: int) -> None:
    """Section 10.5.1 allows 431 too; a stream that is refused so is not the connection's fault."""
    async with greeted(victim.path) as client:
        most = client.settings[Setting.MAX_HEADER_LIST_SIZE]
    large = [(b"x-%d" % at, b"x" * 968) for at in range(most // 1000 + 1)]
    fields, before, flags = (list(request_fields("Echo")), b"", 0) if where == "request" else ([], _OPEN, END_STREAM)
    whole = block([*fields, *large])
    step = min(-(-len(whole) // pieces), 16_384)
    parts = [whole[at : at + step] for at in range(0, len(whole), step)]
    attack = before + frame(Kind.HEADERS, 1, parts[0], flags | (END_HEADERS if len(parts) == 1 else 0))
    for part in parts[1:]:
        attack += frame(Kind.CONTINUATION, 1, part, END_HEADERS if part is parts[-1] else 0)
    await holds(victim, case(attack, _MALFORMED, Reset(Code.ENHANCE_YOUR_CALM), Reset(Code.REFUSED_STREAM)))


async def test_a_small_block_cannot_become_a_large_list(victim: Attacked) -> None:
    """The bomb of HPACK: an entry of the table, referred to again and again, before the table is known to be 0."""
    encoder = hpack.Encoder()
    first = encoder.encode([*request_fields("Echo"), (b"x-bomb", b"x" * 3900)])
    bomb = frame(Kind.HEADERS, 1, first, END_HEADERS)
    bomb += frame(Kind.HEADERS, 3, encoder.encode(list(request_fields("Echo"))) + b"\xc2" * 4000, END_HEADERS)
    async with connected(victim.path) as client:
        await client.send(PREFACE + settings() + bomb)
        await client.until_end_or(lambda: client.streams[3].over)
        assert client.streams[3].code is not None or client.goaway is not None
        assert victim.started <= 1
