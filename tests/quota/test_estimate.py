"""Estimates of tokens: positive, monotone, bounded; learned from whole populations, not from one odd tenant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.estimate import (
    BOUNDS,
    LEAST_MILLIBYTES,
    LESSONS_OF_A_TENANT,
    MILLI,
    MODELS,
    MOST_MILLIBYTES,
    START_MILLIBYTES,
    Estimate,
    Estimates,
    Learner,
    Lesson,
    bucket_of,
    tokens,
)

SIZES = st.integers(0, 2**40)
LEARNED = st.builds(
    Estimate,
    millibytes=st.none() | st.integers(-10, 10**9),
    output_tokens=st.none() | st.integers(-10, 10**12),
)


def lesson(**changes: object) -> Lesson:
    whole = {"model": "m", "tenant_id": "ten_a", "input_bytes": 4000, "input_tokens": 1000, "output_tokens": 100}
    return Lesson(**{**whole, **changes})  # type: ignore[arg-type]


@given(SIZES, SIZES, LEARNED)
def test_an_estimate_of_input_is_positive_monotone_and_bounded(one: int, other: int, learned: Estimate) -> None:
    estimates = Estimates()
    estimates.replace({"m": learned})
    small, large = sorted((one, other))
    assert 1 <= estimates.input_tokens("m", small) <= estimates.input_tokens("m", large)
    assert estimates.input_tokens("m", large) <= max(1, -(-large * MILLI // LEAST_MILLIBYTES))
    assert estimates.input_tokens("m", large) >= large * MILLI // MOST_MILLIBYTES


@given(st.integers(1, 10**6), LEARNED)
def test_an_estimate_of_output_is_the_default_or_positive_and_bounded(default: int, learned: Estimate) -> None:
    estimates = Estimates()
    estimates.replace({"m": learned})
    found = estimates.output_tokens("m", default)
    assert found == default if learned.output_tokens is None else 1 <= found <= BOUNDS[-1]


def test_a_model_that_nobody_knows_starts_at_the_configured_value() -> None:
    assert Estimates().input_tokens("new", 4001) == 1001 == tokens(4001)
    assert Estimates(2 * MILLI).input_tokens("new", 4001) == 2001
    assert Estimates().output_tokens("new", 512) == 512


def test_what_is_learned_replaces_the_start_value_for_its_model_alone() -> None:
    estimates = Estimates()
    estimates.replace({"dense": Estimate(millibytes=2500, output_tokens=320)})
    assert estimates.input_tokens("dense", 1000) == 400
    assert estimates.output_tokens("dense", 512) == 320
    assert estimates.input_tokens("other", 1000) == 250


def test_models_are_bounded() -> None:
    estimates = Estimates()
    estimates.replace({f"m{number}": Estimate(millibytes=1000) for number in range(MODELS + 5)})
    assert estimates.input_tokens(f"m{MODELS - 1}", 1000) == 1000
    assert estimates.input_tokens(f"m{MODELS}", 1000) == 250
    learner = Learner()
    for number in range(MODELS + 5):
        learner.learn(lesson(model=f"m{number}"))
    assert len(learner.take()) == MODELS


@given(st.integers(0, 10**9))
def test_a_bucket_holds_an_answer_and_is_a_quarter_too_wide_at_most(output: int) -> None:
    bound = BOUNDS[bucket_of(output)]
    if BOUNDS[0] < output <= BOUNDS[-1]:
        assert output <= bound <= output * 5 / 4
    else:
        assert bound in {BOUNDS[0], BOUNDS[-1]}


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_no_request_says_more_than_a_request_may(input_bytes: int, input_tokens: int) -> None:
    learner = Learner()
    learner.learn(lesson(input_bytes=input_bytes, input_tokens=input_tokens))
    delta = learner.take()["m"]
    # As exact as the rounding of a request's few bytes to a thousandth allows.
    assert delta.bytes * MILLI * MILLI >= delta.millitokens * LEAST_MILLIBYTES
    assert delta.bytes * MILLI * MILLI <= (delta.millitokens + 1) * MOST_MILLIBYTES


def test_one_tenant_is_heard_no_more_than_a_few_times_between_two_flushes() -> None:
    learner = Learner()
    for _ in range(100):
        learner.learn(lesson(tenant_id="loud", input_tokens=4000))
    for tenant in ("ten_b", "ten_c"):
        learner.learn(lesson(tenant_id=tenant))
    assert learner.take()["m"].lessons == LESSONS_OF_A_TENANT + 2
    learner.learn(lesson(tenant_id="loud"))
    assert learner.take()["m"].lessons == 1


@pytest.mark.parametrize(
    "nothing", [{"input_bytes": 0}, {"input_tokens": 0}, {"output_tokens": None}, {"output_tokens": 0}]
)
def test_what_says_nothing_is_not_learned(nothing: dict[str, object]) -> None:
    learner = Learner()
    learner.learn(lesson(**nothing))
    delta = learner.take()["m"]
    assert (delta.lessons == 0) == ("output_tokens" not in nothing)
    assert (delta.answers == {}) == ("output_tokens" in nothing)


def test_what_was_taken_is_not_handed_out_again() -> None:
    learner = Learner()
    learner.learn(lesson())
    assert learner.take()
    assert learner.take() == {}
    learner.learn(lesson(model=""))
    assert learner.take() == {}


def test_the_start_value_is_within_the_bounds() -> None:
    assert LEAST_MILLIBYTES <= START_MILLIBYTES <= MOST_MILLIBYTES
    assert Estimates(0).input_tokens("m", 10) == 10
