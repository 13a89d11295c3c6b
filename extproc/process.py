"""How does Envoy ask whether a request may run, and tell when it is over? The ext_proc service.

Native metering exchanges one message pair: the request's body, with Check's Grant beside it, and the answer. The
stream then stays open until the response ends. In line, the response's headers and body pass here as well.
"""

from collections.abc import Callable
from typing import Any

from authz import arrival as arrivals
from authz import grant as grants
from authz import routes
from authz.arrival import Arrival
from authz.grant import Grant
from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc import inference_request, wire
from extproc.admitter import Admitter, Candidate
from extproc.inference_request import InferenceRequest
from extproc.inline import InlineResponse
from extproc.record import Admission
from extproc.wire import Phase
from quota import model_pattern
from wire.transport import Service, Stream

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"
_MS_PER_SECOND = 1000


class ExternalProcessor:
    """Answers Envoy's Process. `now` is seconds since the epoch; `observe` is told every outcome of an admission."""

    def __init__(
        self, admitter: Admitter, *, now: Callable[[], float], observe: Callable[[Admission | Refusal], None]
    ) -> None:
        self._admitter = admitter
        self._now = now
        self._observe = observe
        self.live = 0
        """How many admitted requests have their stream here."""

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
                    self.live += admission is not None
                    stream.write(reply)
                elif response is not None:
                    self._pass_response(stream, response, phase, message)
        finally:
            if admission is not None:
                self.live -= 1
                self._admitter.stream_closed(admission)

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
        if isinstance(request, InferenceRequest):
            request = _refused_model(grant, request, message.request_body.body) or request
        if isinstance(request, Refusal):
            return self._refused(request, arrival), None, None
        outcome = await self._admitter.admit(
            Candidate(grant_text=grant_text, grant=grant, arrival=arrival, request=request)
        )
        if isinstance(outcome, Refusal):
            return self._refused(outcome, arrival), None, None
        self._observe(outcome.admission)
        strip_usage = request.strip_usage
        reply = wire.let_pass(
            record=outcome.record.decode(), body=request.body, strip_usage=strip_usage, headers=outcome.headers
        )
        return reply, outcome.admission, InlineResponse(strip_usage=strip_usage)

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
    # Limits and prices go by the model too; its reader might take the other one.
    if inference_request.may_say_twice(body, "model") and inference_request.says_twice(body, "model"):
        return Refusal(reason=Reason.INVALID_BODY, param="model", message="The field 'model' stands there twice.")
    return None
