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
from authz.principal import Metering
from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc import inference_request, wire
from extproc.admitter import Admitted, Admitter, Candidate
from extproc.idempotency import KeyedRequest, Replay
from extproc.inference_request import InferenceRequest
from extproc.inline import InlineResponse
from extproc.live import LiveRequest, LiveRequests
from extproc.once import Once, Recording
from extproc.record import Admission
from extproc.recorded_answer import SeenResponse
from extproc.wire import Phase
from quota import model_pattern
from transport.service import Service, Stream

SERVICE_NAME = "envoy.service.ext_proc.v3.ExternalProcessor"


class ExternalProcessor:
    """Answers Envoy's Process. `now` is seconds since the epoch; `observe` is told every outcome of an admission.

    `live` knows the requests whose stream is here, for whoever has one stopped. `once` admits them.
    """

    def __init__(
        self,
        admitter: Admitter,
        live: LiveRequests,
        once: Once,
        *,
        now: Callable[[], float],
        observe: Callable[[Admission | Refusal | Replay], None],
    ) -> None:
        self._admitter = admitter
        self._live = live
        self._once = once
        self._now = now
        self._observe = observe

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={}, streams={"Process": self.process})

    async def process(self, stream: Stream) -> None:
        """One request's ext_proc stream, to its end.

        Not left before: in FULL_DUPLEX_STREAMED mode Envoy would drop what has not passed yet.
        """
        request: LiveRequest | None = None
        try:
            while (raw := await stream.read()) is not None:
                phase, message = wire.read(raw)
                if request is not None:
                    if request.recording is not None:
                        await request.recording.see(phase, message)
                    request.take(phase, message)
                elif phase == Phase.REQUEST_BODY:
                    request = await self._begin(stream, message)
        finally:
            if request is not None:
                self._end(request)

    async def _begin(self, stream: Stream, message: Any) -> LiveRequest | None:
        """Answer for a request; None when it was refused before anything was taken for it."""
        grant_text, arrival_text = wire.grant_and_arrival(message)
        if not grant_text:
            # ext_authz did not run for this request: an HTTP/2 CONNECT, which matches no route of a path.
            stream.write(self._refused(Refusal(reason=Reason.MISSING_CREDENTIALS), None))
            return None
        grant, arrival = grants.decode(grant_text), arrivals.decode(arrival_text)
        request = _read(message.request_body.body, grant, arrival)
        if isinstance(request, Refusal):
            stream.write(self._refused(request, arrival))
            return None
        candidate = Candidate(grant_text=grant_text, grant=grant, arrival=arrival, request=request)
        keyed = self._once.keyed(candidate, message.request_body.body)
        live = LiveRequest(stream, arrival, now=self._now)
        # From here on, for a stop may come as soon as Redis knows of the request, before its answer is here.
        self._live.add(live)
        try:
            outcome = await self._once.admit(candidate, keyed)
            if isinstance(outcome, Refusal):
                stream.write(self._refused(outcome, arrival))
            elif isinstance(outcome, Replay):
                self._observe(outcome)
                stream.write(wire.replay(outcome))
            else:
                self._let_pass(live, candidate, outcome, keyed)
        except BaseException:
            self._end(live)
            raise
        return live

    def _let_pass(self, live: LiveRequest, candidate: Candidate, outcome: Admitted, keyed: KeyedRequest | None) -> None:
        self._observe(outcome.admission)
        request = candidate.request
        reply = wire.let_pass(
            record=outcome.record.decode(),
            body=request.body,
            strip_usage=request.strip_usage,
            headers=outcome.headers,
        )
        response: InlineResponse | SeenResponse = InlineResponse(
            strip_usage=request.strip_usage,
            caps=outcome.admission.caps,
            dialect=routes.dialect_of(candidate.arrival.path),
            request_id=live.id,
        )
        if keyed is not None:
            live.recording = Recording(self._once, keyed)
            if candidate.grant.metering is Metering.NATIVE:
                response = SeenResponse(live.recording.answer)
        live.let_pass(reply, outcome.admission, response)

    def _end(self, live: LiveRequest) -> None:
        self._live.remove(live)
        if live.admission is not None:
            self._admitter.stream_closed(live.admission, stopped=live.stopped, answered=live.answered)

    def _refused(self, refusal: Refusal, arrival: Arrival | None) -> bytes:
        self._observe(refusal)
        dialect = routes.dialect_of(arrival.path) if arrival else Dialect.PLAIN
        request_id = arrival.request_id if arrival else ""
        return wire.refuse(refusal, dialect=dialect, request_id=request_id, now=self._now())


def _read(body: bytes, grant: Grant, arrival: Arrival) -> InferenceRequest | Refusal:
    """The request that a body is, or what is wrong with it."""
    request = inference_request.validate(body, routes.dialect_of(arrival.path))
    if isinstance(request, Refusal):
        return request
    return _refused_model(grant, request, body) or request


def _refused_model(grant: Grant, request: InferenceRequest, body: bytes) -> Refusal | None:
    if not model_pattern.allows(grant.models, request.model):
        return Refusal(reason=Reason.MODEL_NOT_ALLOWED, param="model", details={"model": request.model})
    # Limits and prices go by the model too; its reader might take the other one.
    if inference_request.may_say_twice(body, "model") and inference_request.says_twice(body, "model"):
        return Refusal(reason=Reason.INVALID_BODY, param="model", message="The field 'model' stands there twice.")
    return None
