"""Adaptive admission: how much is shed, and whose."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.overload import (
    FEWEST_REQUESTS,
    MOST_SHED,
    PAUSE,
    PRIORITIES,
    RECOVERY,
    SIGNAL_SECONDS,
    WHOLE,
    Controller,
    Sample,
    Shedding,
    Targets,
    refused,
)

TARGETS = Targets(first_byte_ms=1000, error_share=0.1)
SLOW = Sample(requests=100, first_byte_ms=3000)
WELL = Sample(requests=100, first_byte_ms=300)
FAILING = Sample(requests=100, server_errors=90, first_byte_ms=10)
SAMPLES = st.builds(
    Sample,
    requests=st.integers(0, 1000),
    server_errors=st.integers(0, 1000),
    first_byte_ms=st.none() | st.integers(0, 10**7),
    pressure=st.floats(0, 1),
)


class Time:
    """A monotonic clock that a test turns by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def shed_by(controller: Controller, sample: Sample, steps: int) -> int:
    for _ in range(steps):
        controller.step(sample)
    return controller.shed


@given(st.lists(SAMPLES, max_size=60))
def test_something_always_passes(samples: list[Sample]) -> None:
    controller = Controller(TARGETS)
    shares = [controller.step(sample) for sample in samples]
    assert all(0 <= share <= MOST_SHED < WHOLE for share in shares)


@given(st.lists(SAMPLES, max_size=30))
def test_every_overload_is_over_within_the_recovery(samples: list[Sample]) -> None:
    controller = Controller(TARGETS)
    for sample in samples:
        controller.step(sample)
    assert shed_by(controller, WELL, MOST_SHED // RECOVERY) == 0


@given(st.lists(SAMPLES, max_size=30))
def test_without_a_target_only_envoys_pressure_counts(samples: list[Sample]) -> None:
    controller = Controller(Targets())
    for sample in samples:
        controller.step(Sample(requests=sample.requests, server_errors=sample.server_errors, first_byte_ms=10**7))
    assert controller.shed == 0


@pytest.mark.parametrize("sample", [SLOW, FAILING, Sample(requests=0, pressure=1.0)])
def test_overload_sheds_quickly(sample: Sample) -> None:
    controller = Controller(TARGETS)
    assert controller.step(sample) == 200
    assert shed_by(controller, sample, 10) > 650
    assert shed_by(controller, sample, 20) == MOST_SHED


def test_a_signal_just_above_its_target_cuts_as_little() -> None:
    assert Controller(TARGETS).step(Sample(requests=100, first_byte_ms=1050)) == 48


def test_after_a_cut_the_next_second_is_waited_for() -> None:
    controller = Controller(TARGETS)
    shares = [controller.step(SLOW) for _ in range(2 * PAUSE)]
    assert shares == [200, 200, 360, 360]


def test_while_the_signal_gets_better_nothing_more_is_cut() -> None:
    controller = Controller(TARGETS)
    shares = [controller.step(Sample(requests=100, first_byte_ms=late)) for late in (5000, 4000, 3000, 2000, 1100)]
    assert set(shares) == {200}


def test_between_calm_and_target_nothing_changes() -> None:
    controller = Controller(TARGETS)
    controller.step(SLOW)
    assert shed_by(controller, Sample(requests=100, first_byte_ms=800), 50) == 200


def test_recovery_is_smooth() -> None:
    controller = Controller(TARGETS)
    before = shed_by(controller, SLOW, 11)
    shares = [controller.step(WELL) for _ in range(200)]
    assert all(0 <= former - share <= RECOVERY for former, share in zip([before, *shares], shares, strict=False))
    assert shares[-1] == 0


def test_few_requests_are_not_judged_and_do_not_keep_it_shut() -> None:
    controller = Controller(TARGETS)
    few = Sample(requests=FEWEST_REQUESTS - 1, server_errors=FEWEST_REQUESTS - 1, first_byte_ms=60_000)
    assert controller.step(few) == 0
    controller.step(SLOW)
    assert controller.step(few) == 200 - RECOVERY


OFFERS = st.lists(st.integers(0, 10**6), min_size=PRIORITIES, max_size=PRIORITIES)


@given(OFFERS, st.integers(0, MOST_SHED))
def test_the_share_is_taken_from_the_lowest_and_one_priority_at_most_is_divided(offered: list[int], share: int) -> None:
    parts = refused(offered, share)
    assert parts == sorted(parts, reverse=True)
    assert sum(0 < part < WHOLE for part in parts) <= 1
    taken = sum(count * part for count, part in zip(offered, parts, strict=True)) / WHOLE
    whole = sum(offered) * share / WHOLE
    assert whole - max(offered) / WHOLE - 1 <= taken <= whole


@given(OFFERS.filter(any), st.integers(1, MOST_SHED))
def test_the_highest_priority_is_never_refused_whole(offered: list[int], share: int) -> None:
    highest = max(priority for priority, count in enumerate(offered) if count)
    assert refused(offered, share)[highest] < WHOLE


def one_round(shedding: Shedding, number: int) -> Counter[int]:
    """A hundred requests each of 2, 5 and 8; how many of each were refused."""
    return Counter(
        priority for priority in (2, 5, 8) for index in range(100) if shedding.refuses(priority, f"{number}-{index}")
    )


def test_lower_plans_are_shed_first() -> None:
    shedding = Shedding(Time())
    one_round(shedding, 0)
    found = {}
    for share in (0, 150, 333, 500, 666, 950):
        shedding.shed(share)
        found[share] = one_round(shedding, 1)
    assert not found[0]
    assert set(found[150]) == {2}
    assert found[333][2] >= 99
    assert set(found[500]) == {2, 5}
    assert found[500][2] == 100
    assert found[666][8] == 0
    assert found[950][8] < 100


def test_who_is_refused_is_decided_by_the_request() -> None:
    one, other = Shedding(Time()), Shedding(Time())
    for shedding in (one, other):
        shedding.refuses(5, "first")
        shedding.shed(500)
    decisions = [one.refuses(5, f"request-{number}") for number in range(1000)]
    assert decisions == [other.refuses(5, f"request-{number}") for number in range(1000)]
    assert 430 < sum(decisions) < 570


def test_an_old_signal_is_over_by_itself() -> None:
    time = Time()
    shedding = Shedding(time)
    shedding.refuses(0, "first")
    shedding.shed(MOST_SHED)
    refused_now = [f"{number}" for number in range(100) if shedding.refuses(0, f"{number}")]
    time.seconds = SIGNAL_SECONDS - 0.1
    assert all(shedding.refuses(0, request_id) for request_id in refused_now)
    time.seconds = SIGNAL_SECONDS
    assert not any(shedding.refuses(0, request_id) for request_id in refused_now)


def test_a_share_of_nothing_ends_it_at_once() -> None:
    shedding = Shedding(Time())
    shedding.refuses(0, "first")
    shedding.shed(MOST_SHED)
    shedding.shed(0)
    assert not any(shedding.refuses(0, f"{number}") for number in range(100))


def test_the_refused_come_back_spread_out() -> None:
    shedding = Shedding(Time())
    waits = [shedding.retry_after_ms(f"request-{number}") for number in range(1000)]
    assert all(1000 <= wait < 5000 for wait in waits)
    assert max(Counter(wait // 500 for wait in waits).values()) < 200
