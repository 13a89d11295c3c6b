"""Metrics: what is counted in batches is what would have been counted one by one."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.samples import Sample

from sidecar.metrics import _observe_all

BUCKETS = (0.25, 0.5, 1.0, 4.0)


def _samples(histogram: Histogram) -> list[Sample]:
    return [sample for sample in next(iter(histogram.collect())).samples if not sample.name.endswith("_created")]


@given(st.lists(st.integers(0, 200).map(lambda number: number / 32)))
def test_many_observations_at_once_are_what_they_are_one_by_one(values: list[float]) -> None:
    one_by_one, at_once = (
        Histogram("ratio", "Of something.", buckets=BUCKETS, registry=CollectorRegistry()) for _ in range(2)
    )
    for value in values:
        one_by_one.observe(value)
    _observe_all(at_once, values)
    assert _samples(at_once) == _samples(one_by_one)
