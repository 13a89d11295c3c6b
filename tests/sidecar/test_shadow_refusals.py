"""What a limit in shadow mode would have refused is in the log: the first at once, the others as sums, and bounded."""

import pytest

from quota.applied import AppliedLimit
from sidecar import shadow_refusals
from sidecar.shadow_refusals import SUM_SECONDS, ShadowRefusals
from tests.support.values import Clock, sliding

ONE, OTHER = AppliedLimit(sliding(1), "tenant:ten_a"), AppliedLimit(sliding(1), "tenant:ten_b")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[tuple[AppliedLimit, int]]:
    return []


@pytest.fixture
def refusals(clock: Clock, told: list[tuple[AppliedLimit, int]]) -> ShadowRefusals:
    return ShadowRefusals(now=clock.now, tell=lambda applied, count: told.append((applied, count)))


def test_the_first_of_each_is_told_at_once(refusals: ShadowRefusals, told: list[tuple[AppliedLimit, int]]) -> None:
    for applied in (ONE, OTHER, ONE):
        refusals.note(applied)
    assert told == [(ONE, 1), (OTHER, 1)]


def test_the_others_are_summed(refusals: ShadowRefusals, clock: Clock, told: list[tuple[AppliedLimit, int]]) -> None:
    for _ in range(5):
        refusals.note(ONE)
    refusals.flush()
    assert told == [(ONE, 1)]
    clock.ms += int(SUM_SECONDS * 1000)
    refusals.flush()
    assert told == [(ONE, 1), (ONE, 4)]


def test_who_does_not_come_again_is_forgotten_and_is_a_first_again(
    refusals: ShadowRefusals, clock: Clock, told: list[tuple[AppliedLimit, int]]
) -> None:
    refusals.note(ONE)
    clock.ms += int(SUM_SECONDS * 1000)
    refusals.flush()
    refusals.note(ONE)
    assert told == [(ONE, 1), (ONE, 1)]


def test_however_many_limits_there_are_it_stays_bounded(
    refusals: ShadowRefusals, told: list[tuple[AppliedLimit, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_refusals, "MOST", 1)
    refusals.note(ONE)
    refusals.note(OTHER)
    assert told == [(ONE, 1)]
