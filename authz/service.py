"""How does Envoy ask who is calling? The ext_authz service: bytes in, a decision, bytes out."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from authz import decision, idempotency_key, routes, wire
from authz.arrival import Arrival
from authz.credential import Credentials
from authz.failures import FailureGuard, source_of
from authz.grant import Grant
from authz.identification import Identifier
from authz.proof import Proofs
from authz.refusal import Reason, Refusal
from authz.routes import Limited, Route, Upstream
from transport.service import Service

SERVICE_NAME = "envoy.service.auth.v3.Authorization"
# Whoever gets one of these may be guessing.
GUESSES = frozenset({Reason.INVALID_API_KEY, Reason.INVALID_TOKEN, Reason.INVALID_SESSION, Reason.UNKNOWN_CERTIFICATE})
_RETRY_AFTER_MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCredential:
    """What is written down of a credential that was shown and refused."""

    reason: Reason
    fingerprint: str
    tenant_id: str | None
    address: str
    request_id: str
    method: str
    path: str
    """Of the route, `/v1/sessions/{id}`: what a caller writes in its place could be anything."""


class Observer(Protocol):
    """Is told what was decided. Called on the hot path: it must not wait."""

    def granted(self, grant: Grant | None, now: float) -> None:
        """A request was let through, at so many seconds since the epoch; None for a public route."""

    def refused(self, refusal: Refusal, credential: RefusedCredential | None) -> None:
        """A request was refused; with a credential when that was why."""


class Authorization:
    """Answers Envoy's Check. `now` is seconds since the epoch."""

    def __init__(
        self,
        identifier: Identifier,
        guard: FailureGuard,
        passes: wire.Passes,
        *,
        observer: Observer,
        now: Callable[[], float],
    ) -> None:
        self._identifier = identifier
        self._guard = guard
        self._passes = passes
        self._observer = observer
        self._now = now

    def service(self) -> Service:
        """The gRPC service."""
        return Service(name=SERVICE_NAME, unary={"Check": self.check}, streams={})

    async def check(self, raw: bytes) -> bytes:
        """One Check: a serialised CheckRequest to a serialised CheckResponse."""
        request = wire.read(raw)
        route = decision.route(request.method, request.target)
        if isinstance(route, Refusal):
            return self._refuse(request, route)
        if route.public:
            self._observer.granted(None, self._now())
            return wire.PUBLIC
        now = datetime.fromtimestamp(self._now(), UTC)
        shown = self._identifier.shown(request.headers, request.certificate, now=now)
        if isinstance(shown, Refusal):
            return self._refuse(request, shown)
        proofs = self._identifier.recognised(shown, now=now) or await self._identify(shown, request.address, now)
        if isinstance(proofs, Refusal):
            return self._refuse(request, proofs, shown)
        return self._decide(route, request, shown, proofs)

    def _decide(self, route: Route, request: wire.CheckedRequest, shown: Credentials, proofs: Proofs) -> bytes:
        outcome = _outcome(route, proofs, request)
        if isinstance(outcome, Refusal):
            return self._refuse(request, outcome, shown, proofs)
        arrival = _arrival(request) if route.limited is Limited.ALL else None
        if isinstance(arrival, Refusal):
            return self._refuse(request, arrival, shown, proofs)
        answer = self._answer(route, proofs, outcome, request, arrival)
        if answer is None:  # no key to sign with has been had yet
            refusal = Refusal(reason=Reason.IDENTITY_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)
            return self._refuse(request, refusal, shown, proofs)
        self._observer.granted(outcome, self._now())
        return answer

    def _answer(
        self, route: Route, proofs: Proofs, grant: Grant, request: wire.CheckedRequest, arrival: Arrival | None
    ) -> bytes | None:
        if route.upstream is Upstream.CONTROL:
            return self._passes.to_control(grant, proofs.acting, address=request.address)
        return self._passes.to_router(grant, arrival, now=self._now(), dialect=route.dialect)

    async def _identify(self, shown: Credentials, address: str, now: datetime) -> Proofs | Refusal:
        """From a source that failed too often nobody new is let in: who is known there goes on, guesses end."""
        source = source_of(address)
        blocked_ms = self._guard.blocked_ms(source)
        outcome = await self._identifier.identify(shown, now=now, may_ask=blocked_ms is None)
        if isinstance(outcome, Proofs):
            return outcome
        if blocked_ms is not None:
            return Refusal(reason=Reason.TOO_MANY_FAILURES, retry_after_ms=blocked_ms)
        if outcome.reason in GUESSES:
            self._guard.note(source)
        return outcome

    def _refuse(
        self,
        request: wire.CheckedRequest,
        refusal: Refusal,
        shown: Credentials | None = None,
        proofs: Proofs | None = None,
    ) -> bytes:
        self._observer.refused(refusal, _credential(request, refusal, shown, proofs))
        dialect = routes.dialect_of(request.target)
        return wire.deny(refusal, dialect=dialect, request_id=request.request_id, now=self._now())


def _outcome(route: Route, proofs: Proofs, request: wire.CheckedRequest) -> Grant | Refusal:
    outcome = decision.decide(route, proofs, address=request.address, headers=request.headers)
    if isinstance(outcome, Grant) and route.limited is Limited.ALL:
        return decision.body_headers(request.headers) or outcome
    return outcome


def _arrival(request: wire.CheckedRequest) -> Arrival | Refusal:
    key = idempotency_key.read(request.headers)
    if isinstance(key, Refusal):
        return key
    return Arrival(
        request_id=request.request_id, path=request.path, received_ms=request.received_ms, idempotency_key=key
    )


def _credential(
    request: wire.CheckedRequest, refusal: Refusal, shown: Credentials | None, proofs: Proofs | None
) -> RefusedCredential | None:
    """What to write down; nothing of a request without a credential, or one that was refused for something else.

    Nor of one that was refused early for those before it: they are counted, or a guesser would fill the audit.
    """
    if shown is None or refusal.reason.status not in {401, 403}:
        return None
    return RefusedCredential(
        reason=refusal.reason,
        fingerprint=shown.fingerprint,
        tenant_id=proofs.acting.principal.tenant.id if proofs else None,
        address=request.address,
        request_id=request.request_id,
        method=request.method,
        path=routes.at(request.target)[0].path,
    )
