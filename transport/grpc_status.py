"""How does a call of gRPC end? Its status, and the header blocks that carry it.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Responses".
"""

from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import quote

from transport.header_block import encode

_CONTENT_TYPE = (b"content-type", b"application/grpc")
# Percent-encoded is all but visible ASCII and the space, and the percent sign itself.
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Code(IntEnum):
    """Those that this server gives; https://grpc.github.io/grpc/core/md_doc_statuscodes.html."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended, and a word for whoever called."""

    code: Code
    message: str = ""


HEADERS = encode([(b":status", b"200"), _CONTENT_TYPE])
"""The header block of every answer that has a message."""
OK = encode([(b"grpc-status", b"0")])
"""The header block of its end, when all went well."""
NOT_GRPC = encode([(b":status", b"415"), (b"content-length", b"0")])
"""The whole answer to what is not gRPC."""


def trailers(status: Status) -> bytes:
    """The header block that ends an answer."""
    return encode(_fields(status))


def alone(status: Status) -> bytes:
    """The header block of an answer without messages ("Trailers-Only")."""
    # A compressed message is refused with UNIMPLEMENTED, which must say what is understood ("Compression").
    accepted = [(b"grpc-accept-encoding", b"identity")] if status.code is Code.UNIMPLEMENTED else []
    return encode([(b":status", b"200"), _CONTENT_TYPE, *accepted, *_fields(status)])


def _fields(status: Status) -> list[tuple[bytes, bytes]]:
    fields = [(b"grpc-status", b"%d" % status.code)]
    if status.message:
        fields.append((b"grpc-message", quote(status.message, safe=_UNQUOTED).encode()))
    return fields


OK_ALONE = alone(Status(Code.OK))
"""The header block of an answer without messages, when all went well."""
