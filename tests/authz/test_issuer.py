"""The setting, and what claims mean under it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.issuer import Flaw, Issuer, VerifiedToken, parse_issuers, principal_id, read_claims
from authz.principal import PrincipalKind
from authz.scope import Scope
from tests.support.oidc import SigningKey

EXP = 1_767_268_800
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
GOOD = {"issuer": "https://id.example", "audiences": ["gateway"], "jwks_url": "https://id.example/jwks"}
CLAIMS = {"sub": "u", "tenant": "ten_a", "exp": EXP}
KEY = SigningKey.generate()


def _issuer(**changes: Any) -> Issuer:
    [issuer] = parse_issuers(json.dumps([{**GOOD, **changes}]))
    return issuer


def _read(issuer: Issuer | None = None, **claims: Any) -> VerifiedToken:
    token = read_claims(issuer or _issuer(), {**CLAIMS, **claims})
    assert isinstance(token, VerifiedToken)
    return token


def test_an_issuer_needs_three_fields_and_has_defaults_for_the_others() -> None:
    issuer = _issuer()
    assert issuer == Issuer(issuer="https://id.example", audiences=("gateway",), jwks_url="https://id.example/jwks")
    assert issuer.algorithms == ("RS256", "ES256", "EdDSA")
    assert (issuer.leeway_seconds, issuer.tenant_claim, issuer.subject_claim) == (30, "tenant", "sub")
    assert (issuer.scopes_claim, issuer.roles_claim, issuer.plan_claim) == ("scope", None, None)


def test_no_issuers_are_none() -> None:
    assert parse_issuers("[]") == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithms": ["RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "ES512"]},
        {"jwks_url": "http://127.0.0.1:8080/jwks"},
        {"jwks_url": "http://[::1]:8080/jwks"},
        {"jwks_url": "http://localhost/jwks"},
        {"jwks_url": None, "keys": {"keys": [KEY.jwk]}},
        {"leeway_seconds": 0},
        {"leeway_seconds": 300},
        {"tenant": "ten_a"},
        {"tenants": {"acme": "ten_a"}},
        {"tenant_claim": "https://acme.example/tenant", "roles_claim": "realm_access.roles", "plan_claim": "plan"},
    ],
)
def test_what_can_be_configured(changes: dict[str, Any]) -> None:
    _issuer(**changes)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("issuer", {"issuer": ""}),
        ("issuer", {"issuer": 7}),
        ("audiences", {"audiences": []}),
        ("audiences", {"audiences": [""]}),
        ("audiences", {"audiences": "gateway"}),
        *(("algorithms", {"algorithms": names}) for names in (["HS256"], ["none"], ["RS256", "HS512"], ["ES256K"], [])),
        ("jwks_url", {"jwks_url": None}),
        ("jwks_url", {"keys": {"keys": [KEY.jwk]}}),
        ("jwks_url", {"jwks_url": "http://id.example/jwks"}),
        ("jwks_url", {"jwks_url": "http://127.0.0.1.example/jwks"}),
        ("jwks_url", {"jwks_url": "http://127.0.0.1@id.example/jwks"}),
        ("jwks_url", {"jwks_url": "https://user:hunter2@id.example/jwks"}),
        ("jwks_url", {"jwks_url": "https://id.example:port/jwks"}),
        ("jwks_url", {"jwks_url": "https:///jwks"}),
        ("jwks_url", {"jwks_url": "file:///etc/passwd"}),
        ("keys", {"jwks_url": None, "keys": {"keys": []}}),
        ("keys", {"jwks_url": None, "keys": {"kids": []}}),
        ("keys", {"jwks_url": None, "keys": {"keys": [KEY.jwk, {"kty": "oct", "k": "aHVudGVyMg"}]}}),
        ("keys", {"jwks_url": None, "keys": {"keys": [{**KEY.jwk, "d": "hunter2"}]}}),
        ("leeway_seconds", {"leeway_seconds": -1}),
        ("leeway_seconds", {"leeway_seconds": 301}),
        ("leeway_seconds", {"leeway_seconds": "30"}),
        ("tenant", {"tenant": ""}),
        ("tenants", {"tenants": {"acme": ""}}),
        ("tenants", {"tenants": {"acme": "ten_a"}, "tenant": "ten_a"}),
        ("tenant_claim", {"tenant_claim": ""}),
        ("roles_claim", {"roles_claim": ["roles"]}),
        ("role_claim", {"role_claim": "roles"}),
    ],
)
def test_a_wrong_setting_is_named_by_index_and_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^\[1\]\.{field}(\[0\]|\[\.\.\.\])?: ") as caught:
        parse_issuers(json.dumps([{**GOOD, "issuer": "https://other.example"}, {**GOOD, **changes}]))
    assert "hunter2" not in str(caught.value)
    assert "aHVudGVyMg" not in str(caught.value)


@pytest.mark.parametrize("field", ["issuer", "audiences", "jwks_url"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=rf"^\[0\]\.{field}: must be given"):
        parse_issuers(json.dumps([{name: value for name, value in GOOD.items() if name != field}]))


@pytest.mark.parametrize("text", ["", "{}", "null", "[7]", "[" * 10_000, '["a"'])
def test_what_is_no_list_of_issuers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON"):
        parse_issuers(text)


def test_two_entries_of_one_issuer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^\[1\]\.issuer: is the same as that of \[0\]"):
        parse_issuers(json.dumps([GOOD, GOOD]))


def test_an_issuer_made_in_code_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"^algorithms: "):
        Issuer(issuer="a", audiences=("b",), jwks_url="https://a", algorithms=("HS256",))


def test_claims_lead_to_a_handle() -> None:
    token = _read(scope="inference:text models:read email")
    assert token.handle.kind is PrincipalKind.JWT
    assert token.handle.name == principal_id("https://id.example", "u", token.handle.tenant_id)
    assert (token.handle.tenant_id, token.handle.plan, token.handle.roles) == ("ten_a", "", ())
    assert token.scopes == {Scope.INFERENCE_TEXT, Scope.MODELS_READ}
    assert (token.issuer, token.subject, token.expires_at) == ("https://id.example", "u", NOON)


def test_scopes_may_be_a_list() -> None:
    assert _read(scope=["usage:read", "profile"]).scopes == {Scope.USAGE_READ}


@pytest.mark.parametrize("scope", ["admin", "keys:write", "cluster:write", "models:write"])
def test_a_claim_gives_the_great_scopes_only_where_the_operator_says_so(scope: str) -> None:
    assert _read(scope=f"models:read {scope}").scopes == {Scope.MODELS_READ}
    assert _read(_issuer(allowed_scopes=("admin", scope)), scope=f"models:read {scope}").scopes == {Scope(scope)}


def test_only_a_space_parts_scopes() -> None:
    assert read_claims(_issuer(), {**CLAIMS, "scope": "models:read\u00a0usage:read"}) is Flaw.CLAIMS
    assert _read(scope="models:read  usage:read").scopes == {Scope.MODELS_READ, Scope.USAGE_READ}


def test_claims_have_the_names_of_the_settings() -> None:
    issuer = _issuer(
        tenant_claim="https://acme.example/tenant",
        subject_claim="client.id",
        scopes_claim="scp",
        allowed_scopes=("keys:read",),
        roles_claim="realm_access.roles",
        plan_claim="plan",
    )
    claims = {
        "https://acme.example/tenant": "ten_b",
        "client": {"id": "machine"},
        "scp": "keys:read",
        "realm_access": {"roles": ["writer", "reader", "writer"]},
        "plan": "pro",
    }
    token = _read(issuer, **claims, tenant=None, sub=None)
    assert token.subject == "machine"
    assert token.handle[2:] == ("ten_b", "pro", ("reader", "writer"))
    assert token.scopes == {Scope.KEYS_READ}


def test_a_claim_of_the_whole_name_wins_over_a_path() -> None:
    claims = {"org.id": "ten_whole", "org": {"id": "ten_path"}}
    assert _read(_issuer(tenant_claim="org.id"), **claims).handle.tenant_id == "ten_whole"


def test_a_tenant_is_fixed_or_mapped() -> None:
    assert _read(_issuer(tenant="ten_x"), tenant="ten_y").handle.tenant_id == "ten_x"
    mapped = _issuer(tenants={"acme": "ten_a"})
    assert _read(mapped, tenant="acme").handle.tenant_id == "ten_a"
    assert read_claims(mapped, {**CLAIMS, "tenant": "ten_a"}) is Flaw.UNKNOWN_TENANT
    assert read_claims(mapped, {"sub": "u", "exp": EXP}) is Flaw.CLAIMS


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "\0"},
        {"sub": "\ud800"},
        {"tenant": None},
        {"tenant": ["ten_a"]},
        {"tenant": "ten_a\0"},
        {"scope": 7},
        {"scope": {"inference:text": True}},
        {"scope": ["inference:text", 7]},
        {"roles": "a\0b"},
        {"plan": 7},
        {"plan": ""},
    ],
)
def test_a_claim_that_is_missing_or_has_the_wrong_shape_is_a_flaw(claims: dict[str, Any]) -> None:
    issuer = _issuer(roles_claim="roles", plan_claim="plan")
    assert read_claims(issuer, {**CLAIMS, **claims}) is Flaw.CLAIMS


def test_a_principal_id_is_short_and_keeps_issuer_and_subject_apart() -> None:
    assert len(principal_id("a", "bc", "t")) == len("jwt_") + 20
    ones = [("a", "bc", "t"), ("ab", "c", "t"), ("a1", "b", "t"), ("a", "1b", "t"), ("a", "b", "ct"), ("a", "bc", "u")]
    assert len({principal_id(*one) for one in ones}) == len(ones)


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.text() | st.integers(), st.lists), max_size=4))
def test_any_claims_can_be_read(claims: dict[str, Any]) -> None:
    issuer = _issuer(roles_claim="a.b", plan_claim="plan")
    assert isinstance(read_claims(issuer, {**claims, "exp": EXP}), VerifiedToken | Flaw)
