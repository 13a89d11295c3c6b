"""What would limits in shadow mode have refused? Said in the log: the first of each limit at once, then sums.

A limit that is far too tight would have refused every request; the log must not grow by that.
"""

from collections.abc import Callable
from dataclasses import dataclass

from quota.applied import AppliedLimit

SUM_SECONDS = 10.0
# Beyond it nobody new is told of; the metrics count on.
MOST = 1000


@dataclass(slots=True)
class _Told:
    applied: AppliedLimit
    told_at: float
    waiting: int = 0


class ShadowRefusals:
    """Gathers them. `now` is a monotonic clock in seconds; `tell` is given a limit and how many requests it was.

    `flush` is to be called now and then.
    """

    def __init__(self, *, now: Callable[[], float], tell: Callable[[AppliedLimit, int], None]) -> None:
        self._now = now
        self._tell = tell
        self._known: dict[str, _Told] = {}

    def note(self, applied: AppliedLimit) -> None:
        """A request would have been refused by this limit."""
        known = self._known.get(applied.counter)
        if known is not None:
            known.waiting += 1
        elif len(self._known) < MOST:
            self._known[applied.counter] = _Told(applied, self._now())
            self._tell(applied, 1)

    def flush(self) -> None:
        """Tell the sums that have waited long enough, and forget who has not come again."""
        latest = self._now() - SUM_SECONDS
        for counter, known in list(self._known.items()):
            if known.told_at > latest:
                continue
            if known.waiting:
                self._tell(known.applied, known.waiting)
                known.told_at, known.waiting = self._now(), 0
            else:
                del self._known[counter]
