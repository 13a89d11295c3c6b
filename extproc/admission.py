"""What does a valid request ask of its limits, and what is written down of it when it is admitted?"""

from dataclasses import dataclass
from typing import Protocol

import msgspec

from authz.arrival import Arrival
from authz.grant import Grant
from extproc import lifecycle_events
from extproc.inference_request import InferenceRequest
from extproc.lifecycle import State
from extproc.record import Admission
from quota.applied import AppliedLimits
from quota.charges import TokenUsage, charges, least_of
from quota.estimate import Estimates
from quota.rate_card import ModelRates
from quota.reservation import Claim

# Three periodic access-log entries in a row (envoy/envoy.yaml, access_log_flush_interval) may be lost.
LEASE_MS = 20_000
_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Admission)


class Rated(Protocol):
    """Knows the rates of every model, such as `quota.rate_card.RateCard`."""

    def of(self, model: str) -> ModelRates:
        """The rates of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """What a request is taken to use before it has run, and what that weighs and costs."""

    estimates: Estimates
    rates: Rated


def admit(grant: Grant, arrival: Arrival, request: InferenceRequest, tariff: Tariff, *, now_ms: int) -> Admission:
    """The record of the admission, should the limits allow it."""
    rated = tariff.rates.of(request.model)
    reserved = request.max_output_tokens
    if reserved is None:
        reserved = tariff.estimates.output_tokens(request.model, rated.output_tokens) * request.choices
    return Admission(
        request_id=arrival.request_id,
        organization_id=grant.organization_id,
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        key_id=grant.key_id,
        plan=grant.plan,
        path=arrival.path,
        model=request.model,
        stream=request.stream,
        metering=grant.metering.value,
        received_ms=arrival.received_ms,
        admitted_ms=now_ms,
        input_estimate=tariff.estimates.input_tokens(request.model, request.size),
        output_reserved=reserved,
        input_bytes=request.size,
        rates=rated.rates,
        output_named=request.max_output_tokens is not None,
        caps=grant.caps,
    )


def claim(admission: Admission, limits: AppliedLimits) -> Claim:
    """What the request asks of its limits. Without a maximum of its own, the answer makes do with less room."""
    whole = charges(TokenUsage(input=admission.input_estimate, output=admission.output_reserved), admission.rates)
    least = whole if admission.output_named else least_of(whole, admission.input_estimate, admission.rates)
    return Claim(
        organization_id=admission.organization_id,
        tenant_id=admission.tenant_id,
        request_id=admission.request_id,
        limits=limits,
        amounts=whole,
        least=least,
        admission=encode(admission),
        lease_ms=LEASE_MS,
        stage=State.ADMITTED,
        event=lifecycle_events.encode(lifecycle_events.admitted(admission)),
    )


def encode(admission: Admission) -> bytes:
    """The admission as it travels and is stored."""
    return _ENCODER.encode(admission)


def decode(text: bytes | str) -> Admission:
    """Read an admission; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
