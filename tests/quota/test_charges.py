"""What a request counts for: tokens by weight, money by price, rounded up once a request."""

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.charges import NOTHING, Charges, Rates, TokenUsage, charges
from quota.limit import Unit

tokens = st.integers(0, 10**7)
usages = st.builds(TokenUsage, input=tokens, output=tokens, cached=tokens, reasoning=tokens)
weights = st.integers(0, 10_000)
prices = st.integers(0, 10**9)
all_rates = st.builds(
    Rates,
    input_weight=weights,
    cached_weight=weights,
    output_weight=weights,
    reasoning_weight=weights,
    input_price=prices,
    cached_price=prices,
    output_price=prices,
    reasoning_price=prices,
)


def test_without_rates_of_its_own_a_token_counts_one_and_costs_something() -> None:
    counted = charges(TokenUsage(input=100, output=50, cached=40, reasoning=10), Rates())
    assert counted == Charges(requests=1, input_tokens=100, output_tokens=50, tokens=150, cost=1000 + 1500)


def test_each_class_has_a_weight_and_a_price() -> None:
    rates = Rates(
        input_weight=1000,
        cached_weight=100,
        output_weight=4000,
        reasoning_weight=2000,
        input_price=2_000_000,
        cached_price=500_000,
        output_price=8_000_000,
        reasoning_price=4_000_000,
    )
    counted = charges(TokenUsage(input=100, output=50, cached=40, reasoning=10), rates)
    assert counted == Charges(
        requests=1,
        input_tokens=60 + 4,
        output_tokens=160 + 20,
        tokens=64 + 180,
        cost=120 + 20 + 320 + 40,
    )


@given(usages, all_rates)
def test_numbers_are_exact_and_rounded_up_once(usage: TokenUsage, rates: Rates) -> None:
    cached, reasoning = min(usage.cached, usage.input), min(usage.reasoning, usage.output)
    read = (usage.input - cached) * Fraction(rates.input_weight, 1000) + cached * Fraction(rates.cached_weight, 1000)
    shown = usage.output - reasoning
    written = shown * Fraction(rates.output_weight, 1000) + reasoning * Fraction(rates.reasoning_weight, 1000)
    counted = charges(usage, rates)
    assert (counted.requests, counted.input_tokens, counted.output_tokens) == (1, ceil(read), ceil(written))
    assert counted.tokens == ceil(read + written)
    assert counted.tokens <= counted.input_tokens + counted.output_tokens <= counted.tokens + 1
    money = (usage.input - cached) * rates.input_price + cached * rates.cached_price
    money += shown * rates.output_price + reasoning * rates.reasoning_price
    assert counted.cost == ceil(Fraction(money, 1_000_000))


@given(usages, all_rates)
def test_more_tokens_never_count_less(usage: TokenUsage, rates: Rates) -> None:
    more = TokenUsage(input=usage.input + 1, output=usage.output + 1, cached=usage.cached, reasoning=usage.reasoning)
    if usage.cached <= usage.input and usage.reasoning <= usage.output:
        one, other = charges(usage, rates), charges(more, rates)
        assert all(one.of(unit) <= other.of(unit) for unit in Unit)


def test_nothing_used_is_still_a_request() -> None:
    assert charges(TokenUsage(input=0, output=0), Rates()) == Charges(requests=1)


@pytest.mark.parametrize("unit", list(Unit))
def test_every_unit_has_a_number(unit: Unit) -> None:
    assert NOTHING.of(unit) == (1 if unit is Unit.CONCURRENT_REQUESTS else 0)
    assert Charges(requests=3, input_tokens=3, output_tokens=3, tokens=3, cost=3).of(unit) in (1, 3)
