"""How does Envoy ask whether a request may run, and tell when it is over? The ext_proc service.

Native metering exchanges one message pair: the request's body, with Check's Grant beside it, and the answer. The
stream then stays open until the response ends. In line, the response's headers and body pass here as well.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from authz import arrival as arrivals
from authz import grant as grants
from authz import model_pattern, routes
from authz.arrival import Arrival
from authz.grant import Grant
from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc import admission as admissions
from extproc import inference_request, wire
from extproc.inference_request import InferenceRequest
from extproc.inline import InlineResponse
from extproc.record import Admission
from extproc.settlement import Settler
from extproc.wire import Phase
from quota.limit import Unit
from quota.reservation import Claim, Exceeded, QuotaOutage, Reservation, Reservations
from wire.transport import Service, Stream

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"
# Three periodic access-log entries in a row (envoy/envoy.yaml, access_log_flush_interval) may be lost.
LEASE_MS = 20_000
_RETRY_AFTER_MS = 1000
# A slot is freed some milliseconds after the client has its answer: the access log comes in small batches. A client
# that asks again at once, at its ceiling, is given that time before it is refused.
_SLOT_GRACE_SECONDS = (0.03, 0.07)
_MS_PER_SECOND = 1000


class ExternalProcessor:
    """Answers Envoy's Process. `now` is seconds since the epoch; `observe` is told every outcome of an admission."""

    def __init__(
        self,
        reservations: Reservations,
        settler: Settler,
        *,
        now: Callable[[], float],
        observe: Callable[[Admission | Refusal], None],
    ) -> None:
        self._reservations = reservations
        self._settler = settler
        self._now = now
        self._observe = observe

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={}, streams={"Process": self.process})

    async def process(self, stream: Stream) -> None:
        """One request's ext_proc stream, to its end."""
        admission: Admission | None = None
        response: InlineResponse | None = None
        try:
            while (raw := await stream.read()) is not None:
                phase, message = wire.read(raw)
                if phase == Phase.REQUEST_BODY and admission is None:
                    reply, admission, response = await self._admit(message)
                    stream.write(reply)
                elif response is not None:
                    self._pass_response(stream, response, phase, message)
        finally:
            if admission is not None:
                self._settler.stream_closed(admission)

    def _pass_response(self, stream: Stream, response: InlineResponse, phase: str | None, message: Any) -> None:
        if phase == Phase.RESPONSE_BODY:
            for reply in response.body(message, now_ms=self._now_ms()):
                stream.write(reply)
        elif phase == Phase.RESPONSE_HEADERS:
            stream.write(response.headers(message))
        elif phase == Phase.RESPONSE_TRAILERS:
            stream.write(wire.pass_trailers())

    async def _admit(self, message: Any) -> tuple[bytes, Admission | None, InlineResponse | None]:
        grant_text, arrival_text = wire.grant_and_arrival(message)
        if not grant_text:
            # ext_authz did not run for this request: an HTTP/2 CONNECT, which matches no route of a path.
            refusal = Refusal(reason=Reason.MISSING_CREDENTIALS)
            return self._refused(refusal, None), None, None
        grant, arrival = grants.decode(grant_text), arrivals.decode(arrival_text)
        dialect = routes.dialect_of(arrival.path)
        request = inference_request.validate(message.request_body.body, dialect)
        if grant.models and isinstance(request, InferenceRequest):
            request = _refused_model(grant, request, message.request_body.body) or request
        if isinstance(request, Refusal):
            return self._refused(request, arrival), None, None
        admission = admissions.admit(grant, arrival, request, now_ms=self._now_ms())
        no_room = await self._reserve(grant, admission, output_named=request.max_output_tokens is not None)
        if no_room is not None:
            return self._refused(no_room, arrival), None, None
        self._observe(admission)
        return self._passed(admission, request), admission, InlineResponse(strip_usage=request.strip_usage)

    async def _reserve(self, grant: Grant, admission: Admission, *, output_named: bool) -> Refusal | None:
        claim = admissions.claim(grant, admission, output_named=output_named, lease_ms=LEASE_MS)
        try:
            outcome = await self._take(claim)
        except QuotaOutage:
            # The reservation may have been made all the same.
            self._settler.release(admission)
            return Refusal(reason=Reason.LIMITS_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)
        except asyncio.CancelledError:
            self._settler.release(admission)
            raise
        return _exceeded(outcome) if isinstance(outcome, Exceeded) else None

    async def _take(self, claim: Claim) -> Reservation | Exceeded:
        outcome = await self._reservations.reserve(claim)
        for seconds in _SLOT_GRACE_SECONDS:
            if not isinstance(outcome, Exceeded) or outcome.limit.unit is not Unit.CONCURRENT_REQUESTS:
                break
            await asyncio.sleep(seconds)
            outcome = await self._reservations.reserve(claim)
        return outcome

    def _passed(self, admission: Admission, request: InferenceRequest) -> bytes:
        record = admissions.encode(admission).decode()
        return wire.let_pass(record=record, body=request.body, strip_usage=request.strip_usage)

    def _refused(self, refusal: Refusal, arrival: Arrival | None) -> bytes:
        self._observe(refusal)
        dialect = routes.dialect_of(arrival.path) if arrival else Dialect.PLAIN
        request_id = arrival.request_id if arrival else ""
        return wire.refuse(refusal, dialect=dialect, request_id=request_id, now=self._now())

    def _now_ms(self) -> int:
        return int(self._now() * _MS_PER_SECOND)


def _refused_model(grant: Grant, request: InferenceRequest, body: bytes) -> Refusal | None:
    if not model_pattern.allows(grant.models, request.model):
        return Refusal(reason=Reason.MODEL_NOT_ALLOWED, param="model", details={"model": request.model})
    if inference_request.says_twice(body, "model"):
        return Refusal(reason=Reason.INVALID_BODY, param="model", message="The field 'model' stands there twice.")
    return None


def _exceeded(exceeded: Exceeded) -> Refusal:
    limit = exceeded.limit
    details = {"limit": limit.name, "ceiling": limit.ceiling, "used": exceeded.used}
    if exceeded.retry_after_ms is None:
        return Refusal(
            reason=Reason.EXCEEDS_LIMIT,
            message=f"This request alone is larger than the limit '{limit.name}' of {limit.ceiling}.",
            details=details,
        )
    return Refusal(
        reason=Reason.RATE_LIMIT_EXCEEDED,
        message=f"The limit '{limit.name}' of {limit.ceiling} is exceeded.",
        details=details,
        retry_after_ms=exceeded.retry_after_ms,
    )
