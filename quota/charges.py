"""What does a request count for under limits of each unit, in advance and in fact? Tokens by weight, and money."""

import msgspec

from quota.limit import Unit

THOUSANDTHS = 1000
_PRICED_TOKENS = 1_000_000


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens of a request. `cached` of the `input` were read from a cache, `reasoning` of the `output` never shown."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0


class Rates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a token of each class weighs, in thousandths of a token, and costs, in micro-dollars for a million.

    A model without rates of its own has these: nothing is free because nobody has priced it.
    """

    input_weight: int = THOUSANDTHS
    cached_weight: int = THOUSANDTHS
    output_weight: int = THOUSANDTHS
    reasoning_weight: int = THOUSANDTHS
    input_price: int = 10_000_000
    cached_price: int = 10_000_000
    output_price: int = 30_000_000
    reasoning_price: int = 30_000_000


class Charges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is counted, one number a unit: requests, weighted tokens, micro-dollars.

    Concurrent requests are no number: a request holds one slot as long as it runs.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0
    cost: int = 0

    def of(self, unit: Unit) -> int:
        """The number for a unit; 1 for the slot."""
        return 1 if unit is Unit.CONCURRENT_REQUESTS else int(getattr(self, unit))


NOTHING = Charges()


def charges(usage: TokenUsage, rates: Rates) -> Charges:
    """What one request of this usage counts for. Weighted tokens and micro-dollars are rounded up, once a request."""
    cached = min(usage.cached, usage.input)
    reasoning = min(usage.reasoning, usage.output)
    fresh, shown = usage.input - cached, usage.output - reasoning
    input_thousandths = fresh * rates.input_weight + cached * rates.cached_weight
    output_thousandths = shown * rates.output_weight + reasoning * rates.reasoning_weight
    price = (
        fresh * rates.input_price
        + cached * rates.cached_price
        + shown * rates.output_price
        + reasoning * rates.reasoning_price
    )
    return Charges(
        requests=1,
        input_tokens=_rounded_up(input_thousandths, THOUSANDTHS),
        output_tokens=_rounded_up(output_thousandths, THOUSANDTHS),
        tokens=_rounded_up(input_thousandths + output_thousandths, THOUSANDTHS),
        cost=_rounded_up(price, _PRICED_TOKENS),
    )


def least_of(whole: Charges, input_tokens: int, rates: Rates) -> Charges:
    """What a request that names no maximum makes do with: its input alone.

    But 1 of everything that an answer uses, or a limit on that would not hold when it is full.
    """
    given = charges(TokenUsage(input=input_tokens, output=0), rates)
    return msgspec.structs.replace(
        given,
        output_tokens=min(1, whole.output_tokens),
        tokens=max(given.tokens, min(1, whole.tokens)),
        cost=max(given.cost, min(1, whole.cost)),
    )


def _rounded_up(number: int, divisor: int) -> int:
    return -(-number // divisor)
