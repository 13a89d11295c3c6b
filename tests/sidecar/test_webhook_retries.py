"""What follows from an answer: when it is tried again, for how long, and when it is given up."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.webhook_retries import DELAYS, LONGEST_DELAY, Answer, Decision, Fate, decide
from tests.support.identity_rows import NOON

MIDDLE = 0.5


def _decided(answer: Answer, attempts: int = 1, random: float = MIDDLE) -> Decision:
    return decide(answer, attempts=attempts, now=NOON, random=lambda: random)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_what_is_taken_is_delivered(status: int) -> None:
    assert _decided(Answer(status=status), attempts=99) == Decision(Fate.DELIVERED)


@pytest.mark.parametrize(
    "answer", [Answer(error="no connection"), *(Answer(status=code) for code in (301, 308, 400, 404, 429, 500, 503))]
)
def test_what_is_not_taken_is_tried_again_over_a_day_and_then_given_up(answer: Answer) -> None:
    at, attempts = NOON, 1
    while (decision := decide(answer, attempts=attempts, now=at, random=lambda: MIDDLE)).next_at is not None:
        assert decision.fate is Fate.RETRIED
        assert decision.next_at - at == DELAYS[attempts - 1]
        at, attempts = decision.next_at, attempts + 1
    assert decision == Decision(Fate.DEAD)
    assert attempts == len(DELAYS) + 1 == 10
    assert timedelta(hours=20) < at - NOON < timedelta(days=1)


def test_each_delay_is_longer_than_the_one_before() -> None:
    assert list(DELAYS) == sorted(DELAYS)


def test_a_gone_endpoint_disables_its_webhook_at_once() -> None:
    assert _decided(Answer(status=410)) == Decision(Fate.DISABLED)


def test_what_no_attempt_could_better_is_given_up_at_once() -> None:
    assert _decided(Answer(error="no row", hopeless=True)) == Decision(Fate.DEAD)


@given(st.integers(1, len(DELAYS)), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_a_fifth_to_either_side(attempts: int, random: float) -> None:
    found = _decided(Answer(status=500), attempts, random).next_at
    assert found is not None
    assert 0.8 * DELAYS[attempts - 1] <= found - NOON <= 1.2 * DELAYS[attempts - 1]


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120),
        ("1", 5),
        ("0", 5),
        ("-5", 5),
        ("", 5),
        ("soon", 5),
        ("99999999999999999999", LONGEST_DELAY.total_seconds()),
        ("Thu, 01 Jan 2026 12:10:00 GMT", 600),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 5),
        ("Thu, 01 Jan 2032 12:00:00 GMT", LONGEST_DELAY.total_seconds()),
        ("Thu, 01 Jan 99999 12:00:00 GMT", 5),
    ],
)
def test_an_endpoint_may_ask_for_more_time(retry_after: str, seconds: float) -> None:
    found = _decided(Answer(status=503, retry_after=retry_after)).next_at
    assert found == NOON + timedelta(seconds=seconds)


@given(st.text(max_size=50))
def test_whatever_it_asks_for_it_is_tried_again(retry_after: str) -> None:
    found = _decided(Answer(status=503, retry_after=retry_after)).next_at
    assert found is not None
    assert NOON < found <= NOON + LONGEST_DELAY
