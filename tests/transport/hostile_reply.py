"""What did a server answer on one stream? Of HTTP and of gRPC."""

import struct
from dataclasses import dataclass, field

from tests.transport.hostile_wire import Code


@dataclass(slots=True)
class Reply:
    """What came on one stream."""

    heads: list[dict[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    code: Code | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.code is not None

    @property
    def http_status(self) -> int | None:
        return int(self.heads[0][b":status"]) if self.heads else None

    @property
    def grpc_status(self) -> int | None:
        found = self.heads[-1].get(b"grpc-status") if self.heads else None
        return None if found is None else int(found)

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], bytes(self.body)
        while rest:
            flag, length = struct.unpack_from(">BL", rest)
            assert flag == 0
            if len(rest) < 5 + length:
                break
            found.append(rest[5 : 5 + length])
            rest = rest[5 + length :]
        return found
