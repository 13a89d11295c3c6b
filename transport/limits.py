"""How much may a peer make this side hold, and do? RFC 9113 section 10.5."""

from dataclasses import dataclass

from transport.error_code import ConnectionFault, ErrorCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one connection."""

    streams: int = 16_384
    stream_window: int = 262_144
    connection_window: int = 16_777_216
    header_list_octets: int = 16_384
    header_block_octets: int = 65_536
    """Of a list that is too large as well: it must be decoded, to keep the table."""
    idle_frames: int = 10_000
    """Frames in a row, in a second, that bring nobody forward: PING, SETTINGS, empty ones and the like."""
    resets: int = 10_000
    """Streams in a row, in a second, that were opened and reset without an answer (CVE-2023-44487)."""


class FloodGuard:
    """Counts what costs this side more than the peer. What brings somebody forward ends the row.

    Envoy resets every stream of ext_proc when it is done with it: a guard that counted all resets would close good
    connections.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._idle_frames = self._resets = 0

    def idle_frame(self, name: str) -> None:
        """Count a frame. Raises ConnectionFault when there are too many."""
        self._idle_frames += 1
        if self._idle_frames > self._limits.idle_frames:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {name}")

    def reset(self) -> None:
        """Count a stream that was reset unanswered. Raises ConnectionFault when there are too many."""
        self._resets += 1
        if self._resets > self._limits.resets:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset")

    def moved(self) -> None:
        """Somebody has been brought forward."""
        self._idle_frames = 0

    def answered(self) -> None:
        """A stream has been answered."""
        self._resets = 0

    def calm(self) -> None:
        """A second has passed."""
        self._idle_frames = self._resets = 0
