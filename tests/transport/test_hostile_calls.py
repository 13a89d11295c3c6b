"""What does a request do that HTTP/2 allows and gRPC does not?

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, compression.md and statuscodes.md there. They leave much
open; what is open is answered by any of the listed, and never by silence.
"""

import struct
from dataclasses import dataclass

import pytest

from tests.transport.hostile import Client, greeted
from tests.transport.hostile_reply import Reply
from tests.transport.hostile_server import BODY_LIMIT, Attacked, victim
from tests.transport.hostile_wire import (
    END_HEADERS,
    END_STREAM,
    Kind,
    data,
    frame,
    headers,
    message,
    opening,
    request_fields,
)

__all__ = ["victim"]

_OK, _UNKNOWN, _INVALID, _DEADLINE, _EXHAUSTED, _UNIMPLEMENTED, _INTERNAL = 0, 2, 3, 4, 8, 12, 13
_END = data(1, b"", END_STREAM)
_BODY = message(b"hello")
_WHOLE = data(1, _BODY, END_STREAM)
_GZIP: dict[bytes, bytes | None] = {b"grpc-encoding": b"gzip"}


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent on stream 1, and the statuses of which one must come."""

    sent: bytes
    statuses: tuple[int, ...]


def _request(changes: dict[bytes, bytes | None], body: bytes = _WHOLE, method: str = "Unary") -> bytes:
    return headers(1, request_fields(method, changes)) + body


# "Request cardinality violation": UNIMPLEMENTED. Implementations say INTERNAL as well, for which the text has no place.
CARDINALITY = {
    "two messages": Call(opening(1, "Unary") + data(1, _BODY + _BODY, END_STREAM), (_UNIMPLEMENTED,)),
    "two messages without the end": Call(opening(1, "Unary") + data(1, _BODY + _BODY), (_UNIMPLEMENTED,)),
    "two messages in two frames": Call(opening(1, "Unary") + data(1, _BODY) + _WHOLE, (_UNIMPLEMENTED,)),
    "no message": Call(opening(1, "Unary") + _END, (_UNIMPLEMENTED,)),
    "no body": Call(opening(1, "Unary", END_HEADERS | END_STREAM), (_UNIMPLEMENTED,)),
    "no message, and trailers": Call(
        opening(1, "Unary") + headers(1, [(b"x", b"1")], END_HEADERS | END_STREAM), (_UNIMPLEMENTED,)
    ),
}

# "Error parsing request": INTERNAL.
MESSAGES = {
    f"{name}, {method}": Call(opening(1, method) + sent, statuses)
    for method in ("Unary", "Echo")
    for name, sent, statuses in (
        ("half a prefix", data(1, _BODY[:3], END_STREAM), (_INTERNAL,)),
        ("half a message", data(1, _BODY[:-1], END_STREAM), (_INTERNAL,)),
        ("half a message, and trailers", data(1, _BODY[:-1]) + headers(1, [], END_HEADERS | END_STREAM), (_INTERNAL,)),
        ("one octet too many", data(1, _BODY + b"\0", END_STREAM), (_INTERNAL,)),
        ("compressed, without an encoding", data(1, message(b"hello", flag=1), END_STREAM), (_INTERNAL,)),
        ("compressed, not ended", data(1, message(b"hello", flag=1)), (_INTERNAL,)),
        ("a flag of 2", data(1, message(b"hello", flag=2), END_STREAM), (_INTERNAL, _UNIMPLEMENTED)),
        ("a flag of 255", data(1, message(b"hello", flag=255)), (_INTERNAL, _UNIMPLEMENTED)),
        # Before its octets come.
        ("a message of 4 GiB", data(1, struct.pack(">BL", 0, 2**32 - 1)), (_EXHAUSTED,)),
        ("a message beyond the limit", data(1, struct.pack(">BL", 0, 2 * BODY_LIMIT)), (_EXHAUSTED,)),
        ("the same after a good one", data(1, _BODY + struct.pack(">BL", 0, 2 * BODY_LIMIT)), (_EXHAUSTED,)),
    )
    # A unary call that has brought one message has brought too many with the next.
    if (method, name) not in {("Unary", "one octet too many"), ("Unary", "the same after a good one")}
}

# A server that does not support an encoding says UNIMPLEMENTED, at the latest where a message uses it.
ENCODINGS = {
    "unknown": Call(_request({b"grpc-encoding": b"unknown"}, data(1, message(b"x", flag=1))), (_UNIMPLEMENTED,)),
    "gzip": Call(_request(_GZIP, data(1, message(b"x", flag=1), END_STREAM)), (_UNIMPLEMENTED,)),
    "gzip, not used": Call(_request(_GZIP), (_OK, _UNIMPLEMENTED)),
    "identity": Call(_request({b"grpc-encoding": b"identity"}), (_OK,)),
    "identity, but compressed": Call(
        _request({b"grpc-encoding": b"identity"}, data(1, message(b"x", flag=1), END_STREAM)), (_INTERNAL,)
    ),
    "an accepted one": Call(_request({b"grpc-accept-encoding": b"gzip, deflate"}), (_OK,)),
}

PATHS = {
    path: Call(_request({b":path": path.encode()}), (_UNIMPLEMENTED,))
    for path in (
        *("/", "/test.Service", "/test.Service/", "/test.Service/Nothing", "/test.service/Unary", "/Unary", "//", "*"),
        *("/test.Service/Unary/", "/test.Service/Unary?x", "/test.Service/Unary/Unary", "test.Service/Unary", "/%2f"),
    )
}

# TimeoutValue is at most eight digits, TimeoutUnit one of HMSmun. What is none may be refused, or ignored.
_REFUSED_OR_IGNORED = (_OK, _INVALID, _INTERNAL)
TIMEOUTS = {
    **{
        repr(value): Call(_request({b"grpc-timeout": value.encode()}), _REFUSED_OR_IGNORED)
        for value in ("", "S", "1", "1s", "1h", "-1S", "+1S", "1.5S", "1 S", "123456789S", "1SS", "x", "1e3S", "0x1S")
    },
    **{
        value: Call(_request({b"grpc-timeout": value.encode()}), (_OK,))
        for value in ("20S", "1H", "99999999H", "99999999M", "20000m", "99999999u", "00000020S")
    },
    **{
        f"{value}, {method}": Call(_request({b"grpc-timeout": value.encode()}, method=method), (_DEADLINE,))
        for value in ("1n", "99u", "1m", "0S")
        for method in ("Slow", "Deaf")
    },
}

ODD = {
    "+proto": Call(_request({b"content-type": b"application/grpc+proto"}), (_OK,)),
    "metadata": Call(_request({b"x-bin": b"!no base64!", b"grpc-unknown": b"1", b"user-agent": b""}), (_OK,)),
    "an unknown message type": Call(_request({b"grpc-message-type": b"x"}), (_OK,)),
    "an empty message": Call(_request({}, data(1, message(b""), END_STREAM)), (_OK,)),
    "octet by octet": Call(
        _request({}, b"".join(data(1, _BODY[at : at + 1]) for at in range(len(_BODY))) + _END), (_OK,)
    ),
    "empty frames between": Call(
        _request({}, b"".join(data(1, b"") + data(1, _BODY[at : at + 1]) for at in range(len(_BODY))) + _END), (_OK,)
    ),
}

_CALLS = {
    f"{table}: {name}": found
    for table, calls in {
        "cardinality": CARDINALITY,
        "message": MESSAGES,
        "encoding": ENCODINGS,
        "path": PATHS,
        "timeout": TIMEOUTS,
        "odd": ODD,
    }.items()
    for name, found in calls.items()
}


async def _answered(victim: Attacked, client: Client) -> Reply:
    """The whole answer on stream 1; the connection goes on, and no handler does."""
    reply = client.streams[1]
    await client.until(lambda: reply.over)
    assert reply.ended, reply.code
    await victim.idle()
    await client.is_good(3)
    assert victim.errors == []
    return reply


@pytest.mark.parametrize("name", _CALLS)
async def test_a_call_has_a_status_whatever_it_sends(victim: Attacked, name: str) -> None:
    found = _CALLS[name]
    async with greeted(victim.path) as client:
        await client.send(found.sent)
        reply = await _answered(victim, client)
        assert reply.http_status == 200
        assert reply.heads[0][b"content-type"].startswith(b"application/grpc")
        assert reply.grpc_status in found.statuses, reply


@pytest.mark.parametrize("content_type", [None, b"", b"text/plain", b"application/json", b"application/grp", b"grpc"])
@pytest.mark.parametrize("body", [_WHOLE, b"", data(1, b"no message")], ids=["whole", "none", "garbage"])
async def test_what_is_not_grpc_is_an_unsupported_media_type(
    victim: Attacked, content_type: bytes | None, body: bytes
) -> None:
    async with greeted(victim.path) as client:
        await client.send(_request({b"content-type": content_type}, body))
        assert (await _answered(victim, client)).http_status == 415


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"OPTIONS", b"post", b"UNHEARD"])
async def test_only_post_is_a_call(victim: Attacked, method: bytes) -> None:
    """The text says that it is POST, and not what anything else is answered: 405, 415, or a status of gRPC."""
    async with greeted(victim.path) as client:
        await client.send(_request({b":method": method}, _WHOLE))
        reply = await _answered(victim, client)
        assert reply.http_status in {400, 405, 415} or reply.grpc_status in {_UNIMPLEMENTED, _INTERNAL, _UNKNOWN}
        assert victim.started == 1, "of the call that proves that all is well"


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_whose_client_says_nothing_ends_when_the_client_ends_it(victim: Attacked, *, ends: bool) -> None:
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Echo", END_HEADERS | (END_STREAM if ends else 0)) + (b"" if ends else _END))
        reply = await _answered(victim, client)
        assert (reply.grpc_status, reply.messages) == (_OK, [])


async def test_a_call_that_is_refused_needs_no_more_of_its_client(victim: Attacked) -> None:
    """Section 8.1: RST_STREAM of NO_ERROR after the whole answer; what the client still sends is taken and lost."""
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Nothing"))
        reply = client.streams[1]
        await client.until(lambda: reply.code is not None)
        assert (reply.ended, reply.grpc_status, reply.code) == (True, _UNIMPLEMENTED, 0)
        assert await client.echo(data(1, bytes(100_000)) + frame(Kind.DATA, 1, b"\1\0", 0x9))
        await client.is_good(3)


async def test_messages_are_merged_and_cut_anyhow(victim: Attacked) -> None:
    sent = [bytes([at]) * (at * 37 % 500) for at in range(200)]
    whole = b"".join(message(part) for part in sent)
    pieces, at = [], 0
    while at < len(whole):
        step = 1 + at * 7919 % 3_000
        pieces.append(data(1, whole[at : at + step]))
        at += step
    async with greeted(victim.path) as client:
        assert await client.echo(opening(1) + b"".join(pieces) + _END)
        await client.until(lambda: client.streams[1].over)
        assert client.streams[1].messages == sent


async def test_a_handler_that_is_cancelled_from_within_leaves_no_client_waiting(victim: Attacked) -> None:
    """A handler may await what others have cancelled; that is no cancellation by the client, who must be told."""
    async with greeted(victim.path) as client:
        await client.send(opening(1, "Lost") + _WHOLE)
        await _ends(client)
        await victim.idle()
        await client.is_good(3)


async def _ends(client: Client) -> None:
    reply = client.streams[1]
    await client.until(lambda: reply.over)
    assert reply.code is not None or reply.grpc_status != _OK
