"""Which header fields did the peer send? Header blocks in one frame or in several: RFC 9113 section 4.3."""

from dataclasses import dataclass

from transport import frame
from transport.error_code import ConnectionFault, ErrorCode
from transport.header_block import HeaderDecoder, HeaderListTooLarge
from transport.limits import Limits
from transport.request import Fields


@dataclass(slots=True)
class FieldBlock:
    """A whole block. `fields` is None when there are more than the limits allow."""

    stream_id: int
    fields: Fields | None
    ended: bool


class FieldBlocks:
    """Puts blocks together and decodes each, whatever becomes of its stream: the next ones may refer to it."""

    def __init__(self, limits: Limits) -> None:
        self._most_octets = limits.header_block_octets
        self._decoder = HeaderDecoder(max_list_bytes=limits.header_list_octets)
        self._stream_id = 0
        self._ended = False
        self._pieces: bytearray | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the next frame must be a CONTINUATION."""
        return self._pieces is not None

    def forget_table(self) -> None:
        """Hold the peer to SETTINGS_HEADER_TABLE_SIZE 0, which it has acknowledged."""
        self._decoder.table_limit = 0

    def begin(self, flags: int, stream_id: int, piece: bytes) -> FieldBlock | None:
        """Take the piece of a HEADERS frame; the block, if that was all."""
        ended = bool(flags & frame.END_STREAM)
        if flags & frame.END_HEADERS:
            return FieldBlock(stream_id, self._decoded(piece), ended)
        self._stream_id, self._ended, self._pieces = stream_id, ended, bytearray(piece)
        return None

    def go_on(self, flags: int, stream_id: int, piece: bytes) -> FieldBlock | None:
        """Take the piece of a CONTINUATION frame; the block, if that was all."""
        if self._pieces is None or stream_id != self._stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"CONTINUATION on stream {stream_id} continues nothing")
        self._pieces += piece
        if len(self._pieces) > self._most_octets:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if not flags & frame.END_HEADERS:
            return None
        block, self._pieces = bytes(self._pieces), None
        return FieldBlock(stream_id, self._decoded(block), self._ended)

    def _decoded(self, block: bytes) -> Fields | None:
        try:
            return self._decoder.decode(block)
        except HeaderListTooLarge:
            return None
