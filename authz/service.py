"""How does Envoy ask who is calling? The ext_authz service: bytes in, a decision, bytes out."""

from collections.abc import Callable
from datetime import UTC, datetime

from authz import decision, wire
from authz.arrival import Arrival
from authz.directory import CachedDirectory, DirectoryOutage, KeyRecord
from authz.grant import Grant
from authz.refusal import Reason, Refusal
from wire.transport import Service

SERVICE_NAME = "envoy.service.auth.v3.Authorization"
_RETRY_AFTER_MS = 1000


class Authorization:
    """Answers Envoy's Check. `now` is seconds since the epoch; `observe` is told every outcome."""

    def __init__(
        self,
        directory: CachedDirectory,
        *,
        pepper: bytes,
        now: Callable[[], float],
        observe: Callable[[Grant | Refusal], None],
    ) -> None:
        self._directory = directory
        self._pepper = pepper
        self._now = now
        self._observe = observe

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={"Check": self.check}, streams={})

    async def check(self, raw: bytes) -> bytes:
        """One Check: a serialised CheckRequest to a serialised CheckResponse."""
        request = wire.read(raw)
        outcome = await self._decide(request)
        self._observe(outcome)
        if isinstance(outcome, Refusal):
            return wire.deny(outcome, request_id=request.request_id, now=self._now())
        path = request.target.partition("?")[0]
        arrival = Arrival(request_id=request.request_id, path=path, received_ms=request.received_ms)
        return wire.allow(outcome, arrival)

    async def _decide(self, request: wire.CheckedRequest) -> Grant | Refusal:
        route = decision.route(request.method, request.target)
        if isinstance(route, Refusal):
            return route
        key = decision.credential(request.headers)
        if isinstance(key, Refusal):
            return key
        try:
            record = await self._record(key.id)
        except DirectoryOutage:
            return Refusal(reason=Reason.IDENTITY_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)
        granted = decision.grant(key, record, pepper=self._pepper, now=datetime.fromtimestamp(self._now(), UTC))
        if isinstance(granted, Refusal):
            return granted
        return decision.body_headers(request.headers) or granted

    async def _record(self, key_id: str) -> KeyRecord | None:
        held, record = self._directory.fresh(key_id)
        return record if held else await self._directory.find_key(key_id)
