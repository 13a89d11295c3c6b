"""The checks that are fuzzed hold for seeds, damaged seeds and any bytes; and each difference from h2 is a real one."""

from random import Random
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import connection, frames, headers, huffman, messages
from tests.fuzz.differences import ONLY_H2_REFUSES, ONLY_OURS_REFUSES
from tests.fuzz.reached import REACHED

_MODULES = (huffman, headers, frames, connection, messages)
_TARGETS = [pytest.param(module, id=module.__name__.rpartition(".")[2]) for module in _MODULES]
_brief = settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("target", _TARGETS)
def test_the_check_holds_for_its_seeds(target: ModuleType) -> None:
    for seed in target.SEEDS:
        target.check(seed)


@pytest.mark.parametrize("target", _TARGETS)
@_brief
@given(data=st.binary(max_size=120))
def test_the_check_holds_for_any_bytes(target: ModuleType, data: bytes) -> None:
    target.check(data)


@pytest.mark.parametrize("target", _TARGETS)
@_brief
@given(random=st.randoms(use_true_random=False), changes=st.integers(0, 4))
def test_the_check_holds_for_damaged_seeds(target: ModuleType, random: Random, changes: int) -> None:
    data = bytearray(random.choice(target.SEEDS))
    for _ in range(changes):
        data[random.randrange(len(data))] = random.randrange(256)
    target.check(bytes(data))


@pytest.mark.parametrize("name", [*ONLY_H2_REFUSES, *ONLY_OURS_REFUSES])
def test_each_difference_from_h2_is_there_and_there_are_no_other_ones(name: str) -> None:
    assert name in connection.differences(REACHED[name])
    assert set(REACHED) == {*ONLY_H2_REFUSES, *ONLY_OURS_REFUSES}
