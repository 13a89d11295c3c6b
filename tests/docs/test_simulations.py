"""What the plots of the documents show is true of the simulations that they are made from."""

import itertools

import pytest

from quota.overload import MOST_SHED, RECOVERY
from tests.docs import bursts
from tests.docs.plots import plots
from tests.docs.slow_router import (
    CALM_AGAIN,
    CAPACITY,
    ENTERPRISE,
    FREE,
    MORE,
    OVERLOADED,
    PRO,
    SECONDS,
    TARGET_MS,
    Course,
    course,
    offered,
)


@pytest.fixture(scope="module")
def adaptive() -> Course:
    return course(adaptive=True)


def test_a_burst_around_the_hour_passes_a_calendar_hour_nearly_twice() -> None:
    passed = bursts.requests()["calendar hour"]
    assert bursts.most_in_any(passed, bursts.HOUR) > 1.9 * bursts.CEILING
    for hour in range(bursts.START, bursts.END, bursts.HOUR):
        assert sum(hour <= each.at_ms < hour + bursts.HOUR for each in passed) <= bursts.CEILING


def test_no_hour_holds_more_than_a_sliding_ceiling() -> None:
    sliding = {name: passed for name, passed in bursts.requests().items() if "any" in name}
    assert len(sliding) == 2
    for passed in sliding.values():
        assert bursts.most_in_any(passed, bursts.HOUR) <= bursts.CEILING


def test_a_limit_with_a_burst_admits_evenly_after_it() -> None:
    [passed] = [passed for name, passed in bursts.requests().items() if "at once" in name]
    even = bursts.CEILING * bursts.MINUTE // bursts.HOUR
    # In any minute the burst, and what comes back meanwhile; half way through, only the latter.
    assert bursts.most_in_any(passed, bursts.MINUTE) <= bursts.BURST + even
    middle = (bursts.BURST_FROM + bursts.BURST_TO) // 2
    assert abs(bursts.in_last(passed, middle, bursts.MINUTE) - even) <= 1


def test_reserved_tokens_never_pass_the_ceiling_and_tokens_charged_afterwards_do() -> None:
    reserved, afterwards = bursts.answers().values()
    assert bursts.most_in_any(reserved, bursts.MINUTE) <= bursts.TOKEN_CEILING
    assert bursts.most_in_any(afterwards, bursts.MINUTE) > 2 * bursts.TOKEN_CEILING
    # Room that was reserved and not used comes back: little is left unused.
    assert bursts.most_in_any(reserved, bursts.MINUTE) > 0.95 * bursts.TOKEN_CEILING


def test_without_adaptive_admission_the_latency_runs_away() -> None:
    late = course(adaptive=False).first_byte_ms
    assert all(ms > TARGET_MS for ms in late[OVERLOADED + 5 :])
    assert max(late) > 30 * TARGET_MS


def test_with_it_the_latency_comes_back_to_its_target_again_and_again(adaptive: Course) -> None:
    assert max(adaptive.first_byte_ms) <= 2 * TARGET_MS
    slow = [ms > TARGET_MS for ms in adaptive.first_byte_ms]
    assert max(len(list(run)) for is_slow, run in itertools.groupby(slow) if is_slow) <= 10
    assert sum(slow) < (CALM_AGAIN - OVERLOADED) / 3
    assert not any(slow[CALM_AGAIN + 1 :])


def test_the_router_is_kept_busy_all_the_same(adaptive: Course) -> None:
    admitted = [sum(passed.values()) for passed in adaptive.admitted[OVERLOADED:CALM_AGAIN]]
    assert sum(admitted) / len(admitted) > 0.85 * CAPACITY


def test_lower_plans_are_shed_first(adaptive: Course) -> None:
    for second, passed in enumerate(adaptive.admitted):
        assert passed[ENTERPRISE] == offered(second)[ENTERPRISE]
    # While the lowest plan alone offers enough to shed, no other loses any.
    assert all(adaptive.admitted[second][PRO] == offered(second)[PRO] for second in range(MORE))
    # Once it does not, hardly any of it passes while the next is shed.
    later = [
        passed for second, passed in enumerate(adaptive.admitted[MORE:], MORE) if passed[PRO] < offered(second)[PRO]
    ]
    assert later
    assert sum(passed[FREE] for passed in later) < 0.02 * sum(passed[PRO] for passed in later)


def test_all_plans_are_whole_again_soon_after_the_overload(adaptive: Course) -> None:
    whole = CALM_AGAIN + adaptive.shed[CALM_AGAIN] // RECOVERY + 5
    assert whole < CALM_AGAIN + MOST_SHED // RECOVERY
    assert all(adaptive.admitted[second] == offered(second) for second in range(whole, SECONDS))


def test_a_plot_is_the_same_whenever_it_is_made() -> None:
    pictures = plots()
    assert pictures == plots()
    assert all(picture.startswith("<?xml") and "<script" not in picture for picture in pictures.values())
