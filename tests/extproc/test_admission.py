"""What a request asks of its limits: the arithmetic of the claim, and a record that is read back as it was written."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.principal import Metering
from extproc import admission as admissions
from extproc.inference_request import InferenceRequest
from extproc.record import Admission
from quota.estimate import DEFAULT_OUTPUT_TOKENS
from tests.support.values import NOON_MS, REQUEST_ID, admission, arrival, grant, sliding, slots, tokens_a_day

LIMITS = (sliding(9), tokens_a_day(9000), slots(3))


def _request(*, size: int = 80, max_output_tokens: int | None = None) -> InferenceRequest:
    return InferenceRequest(model="demo", stream=True, max_output_tokens=max_output_tokens, size=size)


@pytest.mark.parametrize(
    ("size", "named", "input_estimate", "output_reserved"),
    [
        (0, None, 1, DEFAULT_OUTPUT_TOKENS),
        (1, None, 1, DEFAULT_OUTPUT_TOKENS),
        (4, 1, 1, 1),
        (5, 1, 2, 1),
        (80, 100, 20, 100),
        (4 * 1024 * 1024, 100_000_000, 1024 * 1024, 100_000_000),
    ],
)
def test_the_input_is_estimated_and_the_output_reserved(
    size: int, named: int | None, input_estimate: int, output_reserved: int
) -> None:
    found = admissions.admit(grant(), arrival(), _request(size=size, max_output_tokens=named), now_ms=NOON_MS + 2)
    assert (found.input_estimate, found.output_reserved) == (input_estimate, output_reserved)


def test_an_admission_says_who_what_and_when() -> None:
    found = admissions.admit(
        grant(metering=Metering.INLINE), arrival(), _request(max_output_tokens=100), now_ms=NOON_MS + 2
    )
    assert found == admission(metering="inline")


@pytest.mark.parametrize(("named", "least"), [(True, 120), (False, 20)])
def test_a_request_that_names_its_maximum_gets_it_whole_or_not_at_all(*, named: bool, least: int) -> None:
    claim = admissions.claim(grant(*LIMITS), admission(), output_named=named, lease_ms=5)
    assert [(demand.limit, demand.amount, demand.least) for demand in claim.demands] == [
        (LIMITS[0], 1, 1),
        (LIMITS[1], 120, least),
        (LIMITS[2], 1, 1),
    ]
    assert {demand.subject for demand in claim.demands} == {"tenant:ten_a"}
    assert (claim.organization_id, claim.request_id, claim.lease_ms) == ("org_a", REQUEST_ID, 5)
    assert admissions.decode(claim.admission) == admission()


def test_without_limits_nothing_is_demanded() -> None:
    assert admissions.claim(grant(), admission(), output_named=True, lease_ms=5).demands == ()


@given(
    st.builds(
        admission,
        request_id=st.text(),
        model=st.text(),
        stream=st.booleans(),
        input_estimate=st.integers(0, 2**53),
        received_ms=st.integers(0, 2**53),
    )
)
def test_an_admission_is_read_back_as_it_was_written(one: Admission) -> None:
    raw = admissions.encode(one)
    assert admissions.decode(raw) == admissions.decode(raw.decode()) == one


@pytest.mark.parametrize("text", ["", "{}", "null", '{"request_id":"a"}', "x"])
def test_what_is_no_admission_is_said_to_be_none(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        admissions.decode(text)
