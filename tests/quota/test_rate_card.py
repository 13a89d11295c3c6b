"""Which rates a model has: those of the pattern that says most of its name."""

import itertools

import pytest

from quota.charges import Rates
from quota.rate_card import DEFAULT_OUTPUT_TOKENS, ModelRates, RateCard


def _rates(pattern: str) -> ModelRates:
    return ModelRates(pattern=pattern, rates=Rates(input_price=len(pattern)), output_tokens=7)


@pytest.mark.parametrize(
    ("model", "pattern"),
    [
        ("gpt-5", "gpt-5"),
        ("gpt-5-mini", "gpt-5*"),
        ("gpt-4", "gpt-*"),
        ("GPT-5", "*"),
        ("", "*"),
        ("claude", "*"),
    ],
)
def test_the_longest_pattern_counts_in_whatever_order_they_come(model: str, pattern: str) -> None:
    for patterns in itertools.permutations(["gpt-*", "gpt-5*", "gpt-5", "*"]):
        assert RateCard(map(_rates, patterns)).of(model).pattern == pattern


def test_a_model_that_no_pattern_stands_for_is_not_free() -> None:
    found = RateCard([_rates("gpt-*")]).of("claude")
    assert (found.rates, found.output_tokens) == (Rates(), DEFAULT_OUTPUT_TOKENS)
    assert min(found.rates.input_price, found.rates.cached_price, found.rates.output_price) > 0


def test_what_was_found_once_is_remembered() -> None:
    card = RateCard([_rates("gpt-*")])
    assert card.of("gpt-5") is card.of("gpt-5")
    assert card.of.cache_info().hits == 1
