"""May this caller make this request? Pure decisions: values in, Grant or Refusal out."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from authz import network, routes, session
from authz.grant import Grant
from authz.principal import Principal, PrincipalKind
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
    acting, accompanying = proofs.acting, proofs.accompanying
    certified = proofs.certificate is not None
    return (
        (_contradiction(acting, accompanying) if accompanying else None)
        or _standing_refusal(route, acting.principal, acting.claimed_scopes, certified=certified)
        or _foreign_address((acting, *accompanying), address)
        or (_forgery(route, acting, headers) if acting.csrf_token else None)
        or grant(acting.principal, acting.kind, acting.claimed_scopes, acting.session_id)
    )


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
        organization_limits=tenant.organization_limits,
        time_zone=tenant.time_zone,
        priority=tenant.priority,
        scopes=tuple(sorted(principal.scopes | claimed_scopes)),
        models=principal.models,
        metering=tenant.metering,
        routing_policy=tenant.routing_policy,
        caps=tenant.caps,
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


def _contradiction(acting: Proof, accompanying: Iterable[Proof]) -> Refusal | None:
    """What accompanies the acting credential must lead to the same tenant, and its owner must not be suspended."""
    for proof in accompanying:
        if proof.principal.tenant.id != acting.principal.tenant.id:
            return Refusal(reason=Reason.CONFLICTING_CREDENTIALS)
        if proof.principal.suspended:
            return Refusal(reason=Reason.PRINCIPAL_SUSPENDED)
    return None


@lru_cache(maxsize=50_000)
def _standing_refusal(
    route: Route, principal: Principal, claimed_scopes: frozenset[Scope], *, certified: bool
) -> Refusal | None:
    """What stands against the principal on this route, whatever the request; the same until something changes.

    The highest suspension on the chain is named, and told before what the credential lacks.
    """
    tenant = principal.tenant
    if tenant.organization_suspended:
        return Refusal(reason=Reason.ORGANIZATION_SUSPENDED)
    if tenant.suspended:
        return Refusal(reason=Reason.TENANT_SUSPENDED)
    if principal.suspended:
        return Refusal(reason=Reason.PRINCIPAL_SUSPENDED)
    if (route.certificate_required or tenant.certificate_required) and not certified:
        return Refusal(reason=Reason.CERTIFICATE_REQUIRED)
    if route.scope is None or holds(principal.scopes | claimed_scopes, route.scope):
        return None
    return Refusal(
        reason=Reason.INSUFFICIENT_SCOPE,
        message=f"The credential lacks the scope '{route.scope}', which this path needs.",
        details={"scope": route.scope.value},
    )


def _foreign_address(proofs: Iterable[Proof], address: str) -> Refusal | None:
    for proof in proofs:
        principal = proof.principal
        for networks in (principal.tenant.networks, principal.networks):
            if networks and not network.allows(networks, address):
                return Refusal(reason=Reason.NETWORK_NOT_ALLOWED)
    return None


def _forgery(route: Route, acting: Proof, headers: Mapping[str, str]) -> Refusal | None:
    """A browser sends the cookie along with what a foreign page has it send; the token such a page cannot know."""
    if route.method in _SAFE_METHODS:
        return None
    if session.csrf_matches(acting.csrf_token, headers.get(CSRF_HEADER, "")):
        return None
    return Refusal(reason=Reason.INVALID_CSRF_TOKEN, param=CSRF_HEADER)
