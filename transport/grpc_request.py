"""What does a request of HTTP/2 ask of gRPC? Which method, how long it may take, or why it is none.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Requests".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transport.grpc_status import NOT_GRPC, Code, Status, alone
from transport.request import Request
from transport.service import Service, StreamHandler, UnaryHandler

_CONTENT_TYPE = re.compile(rb"application/grpc([+;].*)?", re.IGNORECASE)
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Who answers a call: one of both handlers is there."""

    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None
    endless: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that can be answered. `timeout_seconds` is None when the caller waits for ever."""

    method: Method
    timeout_seconds: float | None


@dataclass(frozen=True, slots=True)
class Rejected:
    """The header block of the whole answer."""

    block: bytes


def methods(services: Sequence[Service]) -> Mapping[bytes, Method]:
    """All methods, by path."""
    found: dict[bytes, Method] = {}
    for service in services:
        for name, unary in service.unary.items():
            found[f"/{service.name}/{name}".encode()] = Method(unary=unary)
        for name, stream in service.streams.items():
            found[f"/{service.name}/{name}".encode()] = Method(stream=stream, endless=service.endless)
    return found


def read(request: Request, known: Mapping[bytes, Method]) -> Asked | Rejected:
    """The call that a request is."""
    if request.method != b"POST" or _CONTENT_TYPE.fullmatch(request.content_type) is None:
        return Rejected(NOT_GRPC)
    method = known.get(request.path)
    if method is None:
        return Rejected(alone(Status(Code.UNIMPLEMENTED, "there is no such method")))
    if request.encoding not in {b"", b"identity"}:
        return Rejected(alone(Status(Code.UNIMPLEMENTED, "messages that are compressed are not understood")))
    if not request.timeout:
        return Asked(method, None)
    match = _TIMEOUT.fullmatch(request.timeout)
    if match is None:
        return Rejected(alone(Status(Code.INTERNAL, "grpc-timeout cannot be read")))
    return Asked(method, int(match[1]) * _SECONDS[match[2]])
