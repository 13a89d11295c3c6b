"""What does a valid request ask of its limits, and what is written down of it when it is admitted?"""

import msgspec

from authz.arrival import Arrival
from authz.grant import Grant
from extproc.inference_request import InferenceRequest
from extproc.record import Admission
from quota import estimate
from quota.limit import Limit, Unit
from quota.reservation import Claim, Demand

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Admission)


def admit(grant: Grant, arrival: Arrival, request: InferenceRequest, *, now_ms: int) -> Admission:
    """The record of the admission, should the limits allow it."""
    reserved = request.max_output_tokens
    return Admission(
        request_id=arrival.request_id,
        organization_id=grant.organization_id,
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        key_id=grant.key_id,
        path=arrival.path,
        model=request.model,
        stream=request.stream,
        metering=grant.metering.value,
        received_ms=arrival.received_ms,
        admitted_ms=now_ms,
        input_estimate=estimate.tokens(request.size),
        output_reserved=estimate.DEFAULT_OUTPUT_TOKENS if reserved is None else reserved,
    )


def claim(grant: Grant, admission: Admission, *, output_named: bool, lease_ms: int) -> Claim:
    """What the request asks of every limit. Without a maximum of its own, the answer makes do with less room."""
    whole = admission.input_estimate + admission.output_reserved
    least = whole if output_named else admission.input_estimate
    of_tenant = [_demand(limit, f"tenant:{grant.tenant_id}", whole, least) for limit in grant.limits]
    own = [_demand(limit, f"principal:{grant.principal_id}", whole, least) for limit in grant.principal_limits]
    return Claim(
        organization_id=admission.organization_id,
        request_id=admission.request_id,
        demands=(*of_tenant, *own),
        admission=encode(admission),
        lease_ms=lease_ms,
    )


def _demand(limit: Limit, subject: str, whole: int, least: int) -> Demand:
    if limit.unit is Unit.TOKENS:
        return Demand(limit=limit, subject=subject, amount=whole, least=least)
    return Demand(limit=limit, subject=subject, amount=1, least=1)


def encode(admission: Admission) -> bytes:
    """The admission as it travels and is stored."""
    return _ENCODER.encode(admission)


def decode(text: bytes | str) -> Admission:
    """Read an admission; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
