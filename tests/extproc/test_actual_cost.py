"""What the Router says that a request cost, in micro-dollars."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.actual_cost import micro_dollars


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        ('{"total_usd": 0.0013}', 1300),
        ('{"total_usd": "0.0013"}', 1300),
        ('{"total_usd": 2, "input_usd": 1, "currency": "USD"}', 2_000_000),
        ('{"total_usd": 0}', 0),
        ('{"total_usd": -0.0}', 0),
        ('{"total_usd": 1e-3}', 1000),
        # Rounded up, however little is left over.
        ('{"total_usd": 0.0000011}', 2),
        ('{"total_usd": 0.30000000000000004}', 300_001),
        ('{"total_usd": "0.0000010000000000000000000000000000000000000000001"}', 2),
        ('{"total_usd": "1e-99999999"}', 1),
        ('{"total_usd": 1000000}', 10**12),
    ],
)
def test_a_cost_is_micro_dollars_rounded_up(text: str, cost: int) -> None:
    assert micro_dollars(text) == cost


@pytest.mark.parametrize(
    "said",
    [
        *("-0.01", '"-1"', "null", "true", '""', '"dear"', "[1]", '{"usd": 1}'),
        *('"NaN"', '"sNaN"', '"Infinity"', '"-Infinity"', '"1e99999999"', "1000000.01", "1e400", "9" * 4000),
    ],
)
def test_what_is_no_amount_says_none(said: str) -> None:
    assert micro_dollars(f'{{"total_usd": {said}}}') is None


@pytest.mark.parametrize("text", ["", "{}", "null", "1", '"1"', "[]", "{", '{"total": 1}', "[" * 5000, "\udcff"])
def test_what_is_no_cost_says_none(text: str) -> None:
    assert micro_dollars(text) is None


@given(amount=st.decimals(min_value=0, max_value=1_000_000, allow_nan=False), quoted=st.booleans())
def test_never_less_than_it_was_and_less_than_one_more(amount: Decimal, *, quoted: bool) -> None:
    said = f'"{amount}"' if quoted else f"{amount:f}"
    found = micro_dollars(f'{{"total_usd": {said}}}')
    assert found is not None
    if quoted:
        assert 0 <= found - amount * 10**6 < 1


@given(text=st.text(max_size=60))
def test_whatever_is_said_costs_nothing_negative(text: str) -> None:
    for said in (text, f'{{"total_usd": {text}}}'):
        found = micro_dollars(said)
        assert found is None or 0 <= found <= 10**12
