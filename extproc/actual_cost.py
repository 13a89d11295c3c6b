"""What did the Router say that a request cost? Its decimal dollars become the micro-dollars that limits count."""

from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation

import msgspec

_MICRO_DOLLARS = 1_000_000
# More than any request costs. What counters add up must stay below 2^53, whatever a Router says.
_MOST_DOLLARS = 1_000_000
_ROUNDED_UP = Context(prec=28, rounding=ROUND_CEILING)


class _Cost(msgspec.Struct):
    total_usd: Decimal


_DECODER = msgspec.json.Decoder(_Cost)


def micro_dollars(text: str) -> int | None:
    """The micro-dollars of `{"total_usd": 0.0013}`, a number or a string, rounded up; None when it says none.

    A negative one is none, nor is more than a million dollars.
    """
    if not text:
        return None
    try:
        total = _DECODER.decode(text).total_usd
        if not (total.is_finite() and 0 <= total <= _MOST_DOLLARS):
            return None
        return int(_ROUNDED_UP.multiply(total, Decimal(_MICRO_DOLLARS)).to_integral_value(ROUND_CEILING))
    except (msgspec.MsgspecError, InvalidOperation, UnicodeError, RecursionError):
        return None
