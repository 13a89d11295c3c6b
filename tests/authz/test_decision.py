"""May this caller make this request? The tables of the decision, row by row."""

from dataclasses import replace
from typing import Any

import pytest

from authz import decision
from authz.grant import Grant
from authz.principal import Handle, Metering, Principal, PrincipalKind
from authz.proof import Proof, Proofs
from authz.refusal import Reason, Refusal
from authz.routes import ROUTES, Dialect, Limited, Route, Upstream
from authz.scope import Scope
from quota.limit import requests_per_minute
from tests.support.values import principal, slots, tenant

ADDRESS = "192.0.2.7"
INFER = next(route for route in ROUTES if route.path == "/v1/infer")
SESSIONS = {route.method: route for route in ROUTES if route.path == "/v1/sessions"}
TEXT = frozenset({Scope.INFERENCE_TEXT})


def proof(of: Principal | None = None, **changes: Any) -> Proof:
    handle = Handle(PrincipalKind.API_KEY, "k")
    return Proof(**{"principal": of or principal(), "kind": PrincipalKind.API_KEY, "handle": handle, **changes})


def workload(**changes: Any) -> Proof:
    whole = {"id": "wl_1", "kind": PrincipalKind.WORKLOAD, "secrets": (), **changes}
    handle = Handle(PrincipalKind.WORKLOAD, "spiffe://a/b")
    return Proof(principal=principal(**whole), kind=PrincipalKind.WORKLOAD, handle=handle)


def decide(
    acting: Proof,
    *,
    route: Route = INFER,
    csrf: str | None = None,
    certificate: Proof | None = None,
    cookie: Proof | None = None,
) -> Grant | Refusal:
    headers = {} if csrf is None else {"x-csrf-token": csrf}
    proofs = Proofs(acting=acting, certificate=certificate, cookie=cookie)
    return decision.decide(route, proofs, address=ADDRESS, headers=headers)


def reason(outcome: Grant | Refusal) -> Reason | None:
    return outcome.reason if isinstance(outcome, Refusal) else None


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("POST", "/v1/infer", Dialect.INFER),
        ("POST", "/v1/chat/completions", Dialect.OPENAI_CHAT),
        ("POST", "/v1/messages", Dialect.ANTHROPIC_MESSAGES),
        ("POST", "/v1/infer?api-version=1&x=/other", Dialect.INFER),
        ("POST", "/v1/infer?", Dialect.INFER),
        ("GET", "/v1/models", Dialect.PLAIN),
        ("DELETE", "/v1/sessions/ses_1", Dialect.PLAIN),
        ("DELETE", "/v1/sessions", Dialect.PLAIN),
        ("GET", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("post", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("", "/v1/infer", Reason.METHOD_NOT_ALLOWED),
        ("OPTIONS", "/v1/infer?", Reason.METHOD_NOT_ALLOWED),
        ("GET", "/v1/sessions/ses_1", Reason.METHOD_NOT_ALLOWED),
        ("POST", "/v1/infer/", Reason.UNKNOWN_PATH),
        ("POST", "/v1/inference", Reason.UNKNOWN_PATH),
        ("POST", "/V1/infer", Reason.UNKNOWN_PATH),
        ("POST", "//v1/infer", Reason.UNKNOWN_PATH),
        ("POST", "/v1/infer#x", Reason.UNKNOWN_PATH),
        ("POST", "/v1%2Finfer", Reason.UNKNOWN_PATH),
        ("DELETE", "/v1/sessions/", Reason.UNKNOWN_PATH),
        ("DELETE", "/v1/sessions/a/b", Reason.UNKNOWN_PATH),
        ("DELETE", "/v1/sessions/{id}", Reason.UNKNOWN_PATH),
        ("POST", "", Reason.UNKNOWN_PATH),
        ("POST", "*", Reason.UNKNOWN_PATH),
        ("POST", "https://host/v1/infer", Reason.UNKNOWN_PATH),
    ],
)
def test_a_path_outside_the_table_does_not_exist(method: str, target: str, found: Dialect | Reason) -> None:
    route = decision.route(method, target)
    assert (route.dialect if isinstance(route, Route) else route.reason) == found


def test_a_wrong_method_is_told_the_right_ones() -> None:
    refusal = decision.route("PUT", "/v1/sessions")
    assert isinstance(refusal, Refusal)
    assert refusal.headers == (("allow", "POST, GET, DELETE"),)
    assert refusal.details == {"allow": ["POST", "GET", "DELETE"]}


def test_every_route_but_the_public_ones_asks_for_somebody() -> None:
    public = {route.path for route in ROUTES if route.public}
    assert public == {"/healthz", "/.well-known/jwks.json", "/openapi.json", "/docs", "/docs/{asset}"}
    for route in ROUTES:
        assert len({(one.method, one.path) for one in ROUTES}) == len(ROUTES)
        if route.limited is Limited.ALL:
            assert route.upstream is Upstream.ROUTER
        if route.upstream is Upstream.ROUTER:
            assert route.scope is not None


@pytest.mark.parametrize(
    ("acting", "found"),
    [
        (principal(), None),
        (principal(scopes=TEXT), None),
        (principal(scopes=frozenset()), Reason.INSUFFICIENT_SCOPE),
        (principal(scopes=frozenset({Scope.INFERENCE_IMAGE, Scope.USAGE_READ})), Reason.INSUFFICIENT_SCOPE),
        (principal(suspended=True), Reason.PRINCIPAL_SUSPENDED),
        (principal(tenant=tenant(suspended=True)), Reason.TENANT_SUSPENDED),
        (principal(tenant=tenant(organization_suspended=True)), Reason.ORGANIZATION_SUSPENDED),
        # The highest on the chain is named.
        (principal(suspended=True, tenant=tenant(suspended=True)), Reason.TENANT_SUSPENDED),
        (principal(tenant=tenant(suspended=True, organization_suspended=True)), Reason.ORGANIZATION_SUSPENDED),
        # A suspension is told before what the credential lacks.
        (principal(suspended=True, scopes=frozenset()), Reason.PRINCIPAL_SUSPENDED),
        (principal(networks=("192.0.2.0/24",)), None),
        (principal(networks=("10.0.0.0/8",)), Reason.NETWORK_NOT_ALLOWED),
        (principal(tenant=tenant(networks=("10.0.0.0/8",))), Reason.NETWORK_NOT_ALLOWED),
        (principal(networks=("192.0.2.0/24",), tenant=tenant(networks=("10.0.0.0/8",))), Reason.NETWORK_NOT_ALLOWED),
        (principal(networks=("10.0.0.0/8", "192.0.2.7/32")), None),
        (principal(tenant=tenant(certificate_required=True)), Reason.CERTIFICATE_REQUIRED),
    ],
)
def test_who_is_granted(acting: Principal, found: Reason | None) -> None:
    assert reason(decide(proof(acting))) == found


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ({"certificate": workload()}, None),
        ({"certificate": workload(tenant=tenant(id="ten_b"))}, Reason.CONFLICTING_CREDENTIALS),
        ({"certificate": workload(suspended=True)}, Reason.PRINCIPAL_SUSPENDED),
        ({"certificate": workload(networks=("10.0.0.0/8",))}, Reason.NETWORK_NOT_ALLOWED),
        ({"cookie": proof(kind=PrincipalKind.SESSION, session_id="ses_1")}, None),
        ({"cookie": proof(principal(tenant=tenant(id="ten_b")))}, Reason.CONFLICTING_CREDENTIALS),
        ({"cookie": proof(), "certificate": workload(tenant=tenant(id="ten_b"))}, Reason.CONFLICTING_CREDENTIALS),
    ],
)
def test_what_accompanies_a_credential_gives_nothing_and_must_agree(
    others: dict[str, Any], found: Reason | None
) -> None:
    assert reason(decide(proof(), **others)) == found
    lacking = decide(proof(principal(scopes=frozenset())), **others)
    assert reason(lacking) is not None


def test_a_tenant_or_a_route_can_demand_a_certificate() -> None:
    demanding = tenant(certificate_required=True)
    certificate = workload(tenant=demanding)
    assert reason(decide(proof(principal(tenant=demanding)), certificate=certificate)) is None
    assert reason(decide(certificate, certificate=certificate)) is None, "it may act itself"
    guarded = replace(INFER, certificate_required=True)
    assert reason(decide(proof(), route=guarded)) is Reason.CERTIFICATE_REQUIRED
    assert reason(decide(proof(), route=guarded, certificate=workload())) is None


@pytest.mark.parametrize("route", [route for route in ROUTES if route.scope], ids=lambda route: route.path)
def test_a_scope_that_is_lacking_is_named(route: Route) -> None:
    others = frozenset(Scope) - {route.scope, Scope.ADMIN}
    refusal = decide(proof(principal(scopes=others)), route=route)
    assert isinstance(refusal, Refusal)
    assert refusal.details == {"scope": route.scope}
    assert f"'{route.scope}'" in (refusal.message or "")
    for enough in ({route.scope}, {Scope.ADMIN}):
        assert reason(decide(proof(principal(scopes=frozenset(enough))), route=route)) is None


def test_scopes_of_a_claim_count_beside_those_of_the_directory() -> None:
    nobody = principal(scopes=frozenset())
    granted = decide(proof(nobody, claimed_scopes=TEXT))
    assert isinstance(granted, Grant)
    assert granted.scopes == ("inference:text",)


@pytest.mark.parametrize(
    ("method", "csrf", "found"),
    [
        ("GET", None, None),
        ("POST", "right", None),
        ("DELETE", "right", None),
        ("POST", None, Reason.INVALID_CSRF_TOKEN),
        ("DELETE", "", Reason.INVALID_CSRF_TOKEN),
        ("POST", "wrong", Reason.INVALID_CSRF_TOKEN),
        ("POST", "right,right", Reason.INVALID_CSRF_TOKEN),
        ("POST", "ri\N{LATIN SMALL LETTER G WITH BREVE}ht", Reason.INVALID_CSRF_TOKEN),
    ],
)
def test_a_change_with_a_cookie_needs_what_a_foreign_page_cannot_know(
    method: str, csrf: str | None, found: Reason | None
) -> None:
    cookie = proof(kind=PrincipalKind.SESSION, session_id="ses_1", csrf_token="right")
    assert reason(decide(cookie, route=SESSIONS[method], csrf=csrf)) == found
    bearer = proof(kind=PrincipalKind.SESSION, session_id="ses_1")
    assert reason(decide(bearer, route=SESSIONS[method], csrf=csrf)) is None
    assert reason(decide(proof(), route=SESSIONS[method], cookie=cookie)) is None, "the key acts, not the cookie"


def test_a_grant_says_what_the_directory_says() -> None:
    gold = tenant(
        id="ten_9",
        organization_id="org_9",
        plan="gold",
        limits=(requests_per_minute(7),),
        metering=Metering.INLINE,
        routing_policy="{}",
    )
    stored = principal(tenant=gold, scopes=TEXT, models=("small-*",), limits=(slots(2),))
    assert decide(proof(stored)) == Grant(
        organization_id="org_9",
        tenant_id="ten_9",
        principal_id="key_7Kq2mWZp4TsB",
        principal_kind=PrincipalKind.API_KEY,
        key_id="7Kq2mWZp4TsB",
        plan="gold",
        limits=(requests_per_minute(7),),
        principal_limits=(slots(2),),
        scopes=("inference:text",),
        models=("small-*",),
        metering=Metering.INLINE,
        routing_policy="{}",
    )


def test_the_grant_of_the_same_principal_is_the_same_object() -> None:
    # What is made of it further on is kept by identity (authz/wire.py).
    one = principal()
    assert decide(proof(one)) is decide(proof(one))
    assert decide(proof(one)) is not decide(proof(replace(one)))


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"content-type": "application/json"}, None),
        ({"content-type": "Application/JSON; charset=utf-8"}, None),
        ({"content-type": " application/json ;x"}, None),
        ({"content-type": "application/json", "content-encoding": "identity"}, None),
        ({"content-type": "application/json", "content-encoding": " Identity "}, None),
        ({}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": ""}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "text/plain"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/jsonl"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "text/plain; application/json"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/json,text/plain"}, Reason.UNSUPPORTED_MEDIA_TYPE),
        ({"content-type": "application/json", "content-encoding": "gzip"}, Reason.UNSUPPORTED_ENCODING),
        ({"content-type": "application/json", "content-encoding": "identity,gzip"}, Reason.UNSUPPORTED_ENCODING),
        ({"content-type": "application/json", "content-length": "0"}, Reason.MISSING_BODY),
    ],
)
def test_what_the_headers_must_say_of_the_body(headers: dict[str, str], found: Reason | None) -> None:
    refusal = decision.body_headers({"content-length": "10", **headers})
    assert (refusal.reason if refusal else None) == found


def test_a_request_without_a_length_has_no_body() -> None:
    refusal = decision.body_headers({"content-type": "application/json"})
    assert refusal is not None
    assert refusal.reason is Reason.MISSING_BODY
