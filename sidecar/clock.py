"""What time is it? The one clock of the wall that the processes hand to what takes time as an argument."""

import time

_MS_PER_SECOND = 1000


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * _MS_PER_SECOND)
