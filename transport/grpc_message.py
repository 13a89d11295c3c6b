"""Where does a message of gRPC end in the body of a stream? Length-prefixed messages.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message".
"""

import struct
from collections.abc import Callable

from transport.grpc_status import Code, Status

_PREFIX = struct.Struct(">BL")
PREFIX_OCTETS = _PREFIX.size


class MessageFault(Exception):
    """What came is no message, or none that is taken. `status` is for the peer."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.status = Status(code, why)


def framed(message: bytes) -> bytes:
    """A message as it is sent: not compressed, behind its length."""
    return _PREFIX.pack(0, len(message)) + message


class Messages:
    """Puts together what arrives in pieces. Holds at most one message that is not whole, of at most `limit` octets.

    `grew` is told by how many octets what is held has grown: they are in no window, and nobody can take them yet.
    """

    __slots__ = ("_grew", "_held", "_limit")

    def __init__(self, limit: int, grew: Callable[[int], None]) -> None:
        self._limit = limit
        self._grew = grew
        self._held = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """The messages that are whole now. Raises MessageFault, as soon as a prefix shows it."""
        if not self._held and len(data) >= PREFIX_OCTETS and self._size(data, 0) == len(data) - PREFIX_OCTETS:
            return [data[PREFIX_OCTETS:]]  # nearly always
        before = len(self._held)
        self._held += data
        try:
            return self._whole()
        finally:
            self._grew(len(self._held) - before)

    def end(self) -> None:
        """No more comes. Raises MessageFault within a message."""
        if self._held:
            raise MessageFault(Code.INTERNAL, "the body ends within a message")

    def forget(self) -> None:
        """Hold nothing any more."""
        if self._held:
            self._grew(-len(self._held))
            self._held.clear()

    def _whole(self) -> list[bytes]:
        found, at = [], 0
        while len(self._held) - at >= PREFIX_OCTETS:
            begin = at + PREFIX_OCTETS
            end = begin + self._size(self._held, at)
            if end > len(self._held):
                break
            found.append(bytes(self._held[begin:end]))
            at = end
        del self._held[:at]
        return found

    def _size(self, data: bytes | bytearray, at: int) -> int:
        compressed, size = _PREFIX.unpack_from(data, at)
        if compressed == 1:
            # A request that names an encoding was refused before ("Compression").
            raise MessageFault(Code.INTERNAL, "the message is compressed, but no encoding was named")
        if compressed:
            raise MessageFault(Code.INTERNAL, "the message has an unknown flag")
        if size > self._limit:
            raise MessageFault(Code.RESOURCE_EXHAUSTED, f"the message has {size} octets; {self._limit} are allowed")
        return int(size)
