"""What a request asks of its limits: the arithmetic of the claim, and a record that is read back as it was written."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.caps import Caps
from authz.principal import Metering
from extproc import admission as admissions
from extproc import lifecycle_events
from extproc.admission import LEASE_MS, Tariff
from extproc.inference_request import InferenceRequest
from extproc.lifecycle import State
from extproc.record import Admission, Degraded
from quota.charges import Charges, Rates, TokenUsage, charges
from quota.estimate import Estimate, Estimates
from quota.limit import Unit
from quota.rate_card import DEFAULT_OUTPUT_TOKENS, ModelRates, RateCard
from tests.support.values import NOON_MS, REQUEST_ID, admission, arrival, grant, held, sliding, slots, tokens_a_day

LIMITS = held(sliding(9), tokens_a_day(9000), slots(3))
RATES = Rates(input_weight=2000, output_weight=500, input_price=3_000_000, output_price=15_000_000)


def _tariff(*rated: ModelRates, **known: Estimate) -> Tariff:
    estimates = Estimates()
    estimates.replace(known)
    return Tariff(estimates=estimates, rates=RateCard(rated))


def _request(*, size: int = 80, max_output_tokens: int | None = None, choices: int = 1) -> InferenceRequest:
    return InferenceRequest(model="demo", stream=True, max_output_tokens=max_output_tokens, size=size, choices=choices)


def _admitted(request: InferenceRequest, tariff: Tariff) -> Admission:
    return admissions.admit(grant(), arrival(), request, tariff, now_ms=NOON_MS + 2)


@pytest.mark.parametrize(
    ("size", "named", "input_estimate", "output_reserved"),
    [
        (0, None, 1, DEFAULT_OUTPUT_TOKENS),
        (1, None, 1, DEFAULT_OUTPUT_TOKENS),
        (4, 1, 1, 1),
        (5, 1, 2, 1),
        (80, 100, 20, 100),
        (80, 0, 20, 0),  # embeddings have no output
        (4 * 1024 * 1024, 100_000_000, 1024 * 1024, 100_000_000),
    ],
)
def test_the_input_is_estimated_and_the_output_reserved(
    size: int, named: int | None, input_estimate: int, output_reserved: int
) -> None:
    found = _admitted(_request(size=size, max_output_tokens=named), _tariff())
    assert (found.input_estimate, found.output_reserved) == (input_estimate, output_reserved)
    assert found.input_bytes == size


def test_what_was_learned_of_the_model_is_what_is_expected_of_it() -> None:
    found = _admitted(_request(size=80), _tariff(demo=Estimate(millibytes=8000, output_tokens=200)))
    assert (found.input_estimate, found.output_reserved) == (10, 200)


def test_before_a_model_is_known_its_card_says_how_long_an_answer_is() -> None:
    card = ModelRates(pattern="dem*", rates=RATES, output_tokens=64)
    assert _admitted(_request(), _tariff(card)).output_reserved == 64
    assert _admitted(_request(), _tariff(card, demo=Estimate(output_tokens=32))).output_reserved == 32


def test_what_the_caller_names_is_believed_before_what_was_learned() -> None:
    named = _request(max_output_tokens=7)
    assert _admitted(named, _tariff(demo=Estimate(output_tokens=200))).output_reserved == 7


def test_the_rates_of_the_model_travel_with_the_admission() -> None:
    assert _admitted(_request(), _tariff(ModelRates(pattern="demo", rates=RATES))).rates == RATES
    assert _admitted(_request(), _tariff(ModelRates(pattern="other", rates=RATES))).rates == Rates()


def test_the_caps_of_the_plan_travel_with_the_admission() -> None:
    caps = Caps(stream_seconds=60, output_tokens=100, response_bytes=1000)
    found = admissions.admit(grant(caps=caps), arrival(), _request(), _tariff(), now_ms=NOON_MS)
    assert admissions.decode(admissions.encode(found)).caps == caps


def test_an_admission_says_who_what_and_when() -> None:
    found = admissions.admit(
        grant(metering=Metering.INLINE), arrival(), _request(max_output_tokens=100), _tariff(), now_ms=NOON_MS + 2
    )
    assert found == admission(metering="inline", input_bytes=80)


@pytest.mark.parametrize(("named", "least"), [(True, 120), (False, 20)])
def test_a_request_that_names_its_maximum_gets_it_whole_or_not_at_all(*, named: bool, least: int) -> None:
    claim = admissions.claim(admission(output_named=named), LIMITS)
    assert (claim.amounts.tokens, claim.least.tokens) == (120, least)
    assert (claim.amounts.requests, claim.least.requests) == (1, 1)
    assert claim.limits is LIMITS
    assert (claim.organization_id, claim.request_id, claim.lease_ms) == ("org_a", REQUEST_ID, LEASE_MS)
    assert (claim.tenant_id, claim.stage) == ("ten_a", State.ADMITTED)
    assert lifecycle_events.decode(claim.event) == lifecycle_events.admitted(admission(output_named=named))
    assert admissions.decode(claim.admission) == admission(output_named=named)


@pytest.mark.parametrize(("named", "reserved"), [(100, 100), (None, 3 * 512)])
def test_an_answer_in_several_choices_is_reserved_for_all_of_them(named: int | None, reserved: int) -> None:
    request = _request(max_output_tokens=named, choices=3)
    found = admissions.admit(grant(), arrival(), request, _tariff(), now_ms=NOON_MS)
    assert found.output_reserved == reserved  # what is named is of all together


def test_a_claim_goes_by_the_rates_of_the_model() -> None:
    claim = admissions.claim(admission(rates=RATES), LIMITS)
    assert claim.amounts == Charges(requests=1, input_tokens=40, output_tokens=50, tokens=90, cost=60 + 1500)


@given(
    input_estimate=st.integers(1, 10**6),
    output_reserved=st.integers(0, 10**8),
    weights=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)),
    prices=st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    named=st.booleans(),
)
def test_a_claim_makes_do_with_no_less_than_its_input_and_asks_for_no_more_than_it_reserves(
    *, input_estimate: int, output_reserved: int, weights: tuple[int, int], prices: tuple[int, int], named: bool
) -> None:
    rates = Rates(input_weight=weights[0], output_weight=weights[1], input_price=prices[0], output_price=prices[1])
    one = admission(input_estimate=input_estimate, output_reserved=output_reserved, rates=rates)
    claim = admissions.claim(msgspec.structs.replace(one, output_named=named), LIMITS)
    assert claim.amounts == charges(TokenUsage(input=input_estimate, output=output_reserved), rates)
    assert all(0 <= claim.least.of(unit) <= claim.amounts.of(unit) for unit in Unit)
    assert claim.least.input_tokens == claim.amounts.input_tokens
    if named or not output_reserved:
        assert claim.least == claim.amounts
    else:
        assert all(claim.least.of(unit) for unit in Unit if claim.amounts.of(unit)), "a full limit lets nobody pass"


@given(
    st.builds(
        admission,
        request_id=st.text(),
        model=st.text(),
        stream=st.booleans(),
        input_estimate=st.integers(0, 2**53),
        received_ms=st.integers(0, 2**53),
        input_bytes=st.integers(0, 2**53),
        degraded=st.sampled_from(Degraded),
        rates=st.builds(Rates, input_weight=st.integers(0, 2**31), output_price=st.integers(0, 2**53)),
    )
)
def test_an_admission_is_read_back_as_it_was_written(one: Admission) -> None:
    raw = admissions.encode(one)
    assert admissions.decode(raw) == admissions.decode(raw.decode()) == one


def test_an_admission_of_an_older_version_is_read() -> None:
    raw = admissions.encode(admission())
    assert not {b"rates", b"input_bytes", b"degraded"} & set(raw.replace(b'"', b" ").split())
    assert admissions.decode(raw).rates == Rates()


@pytest.mark.parametrize("text", ["", "{}", "null", '{"request_id":"a"}', "x"])
def test_what_is_no_admission_is_said_to_be_none(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        admissions.decode(text)
