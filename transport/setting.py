"""What may the peer set, and to what? RFC 9113 section 6.5.2."""

import struct
from enum import IntEnum

from transport.error_code import ConnectionFault, ErrorCode
from transport.frame import LEAST_MAX_FRAME_OCTETS

LARGEST_WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535
"""Of a connection, always; of streams, until a SETTINGS says otherwise (section 6.9.2)."""
_LARGEST_MAX_FRAME_OCTETS = 2**24 - 1
_ENTRY = struct.Struct(">HL")


class Setting(IntEnum):
    """Those that the RFC defines."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


_ALLOWED = {
    Setting.ENABLE_PUSH: (range(2), ErrorCode.PROTOCOL_ERROR),
    Setting.INITIAL_WINDOW_SIZE: (range(LARGEST_WINDOW + 1), ErrorCode.FLOW_CONTROL_ERROR),
    Setting.MAX_FRAME_SIZE: (range(LEAST_MAX_FRAME_OCTETS, _LARGEST_MAX_FRAME_OCTETS + 1), ErrorCode.PROTOCOL_ERROR),
}


def parse(payload: bytes) -> dict[int, int]:
    """The settings by identifier, those that nobody knows too. Of one that is there twice, the last holds."""
    if len(payload) % _ENTRY.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} octets")
    found: dict[int, int] = {}
    for identifier, value in _ENTRY.iter_unpack(payload):
        if identifier in _ALLOWED:
            allowed, code = _ALLOWED[identifier]
            if value not in allowed:
                raise ConnectionFault(code, f"{Setting(identifier).name} of {value}")
        found[identifier] = value
    return found
