"""Did a request end because somebody wanted it stopped, though it was not the gateway that cut it off?

The Router is asked to stop as well. Where it is faster, or the only one who can (the worker of a stream may be gone),
Envoy's log shows an answer that broke off, or an error; it cannot know why.
"""

from msgspec.structs import replace

from extproc.lifecycle import Cause, State
from extproc.record import Admission, Ending, UsageSource

_CUT_OFF = frozenset({Cause.UPSTREAM_RESET, Cause.UPSTREAM_ERROR})


def as_asked(admission: Admission, ending: Ending, asked: Cause | None) -> Ending:
    """The ending, with the wish as its cause where that explains it; `asked` is None when nobody wanted it.

    What it is charged for stays. An answer that came to its end before the wish was carried out is complete.
    """
    if asked is None:
        return ending
    # A stream's usage comes with its end.
    broken = ending.cause is Cause.FINISHED and admission.stream and ending.usage_source is UsageSource.ESTIMATED
    if not broken and ending.cause not in _CUT_OFF:
        return ending
    return replace(ending, state=State.CANCELLED, cause=asked)
