"""What went wrong on a connection of HTTP/2, and how much of it must end? RFC 9113 section 5.4."""

from enum import IntEnum


class ErrorCode(IntEnum):
    """RFC 9113 section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class ConnectionFault(Exception):
    """A connection error (section 5.4.1): the connection ends with a GOAWAY of this code."""

    def __init__(self, code: ErrorCode, why: str) -> None:
        super().__init__(f"{code.name}: {why}")
        self.code = code


class StreamFault(Exception):
    """A stream error (section 5.4.2): the stream ends with a RST_STREAM of this code, and nothing else does."""

    def __init__(self, stream_id: int, code: ErrorCode, why: str) -> None:
        super().__init__(f"stream {stream_id}: {code.name}: {why}")
        self.stream_id = stream_id
        self.code = code


class CompressionFault(ConnectionFault):
    """A header block that cannot be decoded (RFC 7541): the two sides' compression states have parted for good."""

    def __init__(self, why: str) -> None:
        super().__init__(ErrorCode.COMPRESSION_ERROR, why)
