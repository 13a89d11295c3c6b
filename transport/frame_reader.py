"""Where does a frame end in what a peer sends? The preface and the frames, from pieces of any size."""

from collections.abc import Iterator

from transport.error_code import ConnectionFault, ErrorCode
from transport.frame import HEADER, HEADER_OCTETS, LEAST_MAX_FRAME_OCTETS, PREFACE, STREAM_MASK

Frame = tuple[int, int, int, bytes]
"""Type, flags, stream, payload."""


class FrameReader:
    """Cuts a connection into frames. Holds at most one that is not whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._preface_seen = False
        self._begin = 0

    def read(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now. Raises ConnectionFault at what is none, after those before it."""
        if self._rest:
            data = self._rest + data
        if not self._preface_seen and not self._is_preface(data):
            self._rest = data
            return
        at, end = self._begin, len(data)
        self._begin = 0
        while end - at >= HEADER_OCTETS:
            high, low, kind, flags, stream_id = HEADER.unpack_from(data, at)
            size = high << 8 | low
            # SETTINGS_MAX_FRAME_SIZE is left at its first value, for which a peer need not wait.
            if size > LEAST_MAX_FRAME_OCTETS:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} octets")
            begin = at + HEADER_OCTETS
            if begin + size > end:
                break
            at = begin + size
            yield kind, flags, stream_id & STREAM_MASK, data[begin:at]
        self._rest = data[at:]

    def _is_preface(self, data: bytes) -> bool:
        """Whether the preface is whole; the frames begin behind it."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no preface of HTTP/2")
        self._preface_seen = len(data) >= len(PREFACE)
        self._begin = len(PREFACE)
        return self._preface_seen
