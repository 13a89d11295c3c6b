"""May this caller make this request? Pure decisions: values in, Grant or Refusal out."""

from collections.abc import Mapping
from functools import lru_cache

from authz import network, routes, session
from authz.grant import Grant
from authz.principal import Principal, PrincipalKind, Tenant
from authz.proof import Proof, Proofs
from authz.refusal import Reason, Refusal
from authz.routes import Route
from authz.scope import Scope, holds

CSRF_HEADER = "x-csrf-token"
_JSON = "application/json"
# RFC 9110 section 9.2.1: they change nothing, so a foreign page gains nothing by having them sent.
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def route(method: str, target: str) -> Route | Refusal:
    """The route of a request; a path that is not in the table does not exist."""
    found = routes.at(target)
    for one in found:
        if one.method == method:
            return one
    if not found:
        return Refusal(reason=Reason.UNKNOWN_PATH)
    allowed = [one.method for one in found]
    return Refusal(
        reason=Reason.METHOD_NOT_ALLOWED, headers=(("allow", ", ".join(allowed)),), details={"allow": allowed}
    )


def decide(route: Route, proofs: Proofs, *, address: str, headers: Mapping[str, str]) -> Grant | Refusal:
    """The Grant of a caller whose credentials are right, or why there is none on this route, from this address."""
    acting = proofs.acting
    refusal = (
        _contradiction(proofs)
        or _missing_certificate(route, proofs)
        or _suspension(proofs)
        or _missing_scope(route, acting)
        or _foreign_address(proofs, address)
        or _forgery(route, acting, headers)
    )
    return refusal or grant(acting.principal, acting.kind, acting.claimed_scopes, acting.session_id)


@lru_cache(maxsize=20_000)
def grant(principal: Principal, kind: PrincipalKind, claimed_scopes: frozenset[Scope], session_id: str) -> Grant:
    """The Grant of a principal; the same object for the same principal, as long as nothing of it changes."""
    tenant = principal.tenant
    return Grant(
        organization_id=tenant.organization_id,
        tenant_id=tenant.id,
        principal_id=principal.id,
        principal_kind=kind,
        key_id=principal.id.partition("_")[2] if principal.kind is PrincipalKind.API_KEY else "",
        session_id=session_id,
        plan=tenant.plan,
        limits=tenant.limits,
        principal_limits=principal.limits,
        scopes=tuple(sorted(principal.scopes | claimed_scopes)),
        models=principal.models,
        metering=tenant.metering,
        routing_policy=tenant.routing_policy,
    )


def body_headers(headers: Mapping[str, str]) -> Refusal | None:
    """Whether the headers announce a body that can be read. Envoy has the whole body by now and has set its length."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        return Refusal(reason=Reason.UNSUPPORTED_MEDIA_TYPE, param="content-type")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        return Refusal(reason=Reason.UNSUPPORTED_ENCODING, param="content-encoding")
    if headers.get("content-length", "0") == "0":
        return Refusal(reason=Reason.MISSING_BODY)
    return None


def _contradiction(proofs: Proofs) -> Refusal | None:
    tenant_id = proofs.acting.principal.tenant.id
    if any(proof.principal.tenant.id != tenant_id for proof in proofs.accompanying):
        return Refusal(reason=Reason.CONFLICTING_CREDENTIALS)
    return None


def _missing_certificate(route: Route, proofs: Proofs) -> Refusal | None:
    required = route.certificate_required or proofs.acting.principal.tenant.certificate_required
    return Refusal(reason=Reason.CERTIFICATE_REQUIRED) if required and proofs.certificate is None else None


def _suspension(proofs: Proofs) -> Refusal | None:
    """A suspension anywhere on the chain refuses, that of an accompanying credential's owner too."""
    tenant = proofs.acting.principal.tenant
    if tenant.organization_suspended:
        return Refusal(reason=Reason.ORGANIZATION_SUSPENDED)
    if tenant.suspended:
        return Refusal(reason=Reason.TENANT_SUSPENDED)
    if proofs.acting.principal.suspended or any(proof.principal.suspended for proof in proofs.accompanying):
        return Refusal(reason=Reason.PRINCIPAL_SUSPENDED)
    return None


def _missing_scope(route: Route, acting: Proof) -> Refusal | None:
    if route.scope is None or holds(acting.principal.scopes | acting.claimed_scopes, route.scope):
        return None
    return Refusal(
        reason=Reason.INSUFFICIENT_SCOPE,
        message=f"The credential lacks the scope '{route.scope}', which this path needs.",
        details={"scope": route.scope.value},
    )


def _foreign_address(proofs: Proofs, address: str) -> Refusal | None:
    principals = [proofs.acting.principal, *(proof.principal for proof in proofs.accompanying)]
    tenant: Tenant = proofs.acting.principal.tenant
    if all(network.allows(networks, address) for networks in (tenant.networks, *(one.networks for one in principals))):
        return None
    return Refusal(reason=Reason.NETWORK_NOT_ALLOWED)


def _forgery(route: Route, acting: Proof, headers: Mapping[str, str]) -> Refusal | None:
    """A browser sends the cookie along with what a foreign page has it send; the token such a page cannot know."""
    if not acting.csrf_token or route.method in _SAFE_METHODS:
        return None
    if session.csrf_matches(acting.csrf_token, headers.get(CSRF_HEADER, "")):
        return None
    return Refusal(reason=Reason.INVALID_CSRF_TOKEN, param=CSRF_HEADER)
