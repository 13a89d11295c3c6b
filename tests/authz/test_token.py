"""Tokens that are right, and every way to be wrong."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from authz import token as tokens
from authz.issuer import Flaw, VerifiedToken, parse_issuers, principal_id
from authz.key_set import KeySet, KeySetStatus, Pace
from authz.refusal import Reason, Refusal
from authz.scope import Scope
from authz.token import MAX_LENGTH, RefusedToken, TokenVerifier
from sidecar.jwks_client import JwksClient
from tests.support.oidc import AUDIENCE, OidcIssuer, SigningKey, running_issuer

NOW = 1_767_268_800
A, B = "https://a.example", "https://b.example"
KEY, RSA, ED = (SigningKey.generate(alg, f"{alg}-key") for alg in ("ES256", "RS256", "EdDSA"))
KEY_OF_B = SigningKey.generate("ES256", "b-key")
CLAIMS = {"iss": A, "aud": AUDIENCE, "sub": "u", "tenant": "ten_a", "scope": "inference:text", "exp": NOW + 300}
SETTING = json.dumps(
    [
        {"issuer": A, "audiences": [AUDIENCE, "second"], "keys": {"keys": [key.jwk for key in (KEY, RSA, ED)]}},
        {"issuer": B, "audiences": [AUDIENCE], "keys": {"keys": [KEY_OF_B.jwk]}, "tenants": {"acme": "ten_b"}},
    ]
)


class NoFetch:
    """Nothing is to be fetched."""

    async def __call__(self, url: str, /) -> bytes:
        raise AssertionError(url)


@dataclass(slots=True)
class Verifier:
    """A TokenVerifier with its clock, and what it told its observer."""

    tokens: TokenVerifier
    now: float = NOW
    told: list[KeySetStatus | RefusedToken] = field(default_factory=list)

    async def flaw(self, text: str) -> Flaw:
        """Why the token is refused; what the caller is told is the same for all."""
        outcome = await self.tokens.verify(text)
        assert outcome == Refusal(reason=Reason.INVALID_TOKEN)
        assert self.tokens.held(text) is None
        refused = self.told[-1]
        assert isinstance(refused, RefusedToken)
        return refused.flaw

    async def token(self, text: str) -> VerifiedToken:
        outcome = await self.tokens.verify(text)
        assert isinstance(outcome, VerifiedToken), self.told
        assert self.tokens.held(text) is outcome
        return outcome


@pytest.fixture
def verifier() -> Verifier:
    return _verifier()


def _verifier() -> Verifier:
    told: list[KeySetStatus | RefusedToken] = []
    verifier: Verifier
    made = TokenVerifier.of(
        parse_issuers(SETTING), NoFetch(), now=lambda: verifier.now, monotonic=time.monotonic, observe=told.append
    )
    verifier = Verifier(made, told=told)
    return verifier


def _claims(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**CLAIMS, **changes}.items() if value is not None}


def _segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _unsigned(header: Any, payload: Any) -> str:
    return f"{_segment(header)}.{_segment(payload)}.AAAA"


@pytest.mark.parametrize("key", [KEY, RSA, ED], ids=lambda key: key.alg)
async def test_a_right_token_says_who_calls(verifier: Verifier, key: SigningKey) -> None:
    token = await verifier.token(key.sign(_claims()))
    assert token.handle.name == principal_id(A, "u", token.handle.tenant_id)
    assert token.handle.tenant_id == "ten_a"
    assert token.scopes == {Scope.INFERENCE_TEXT}
    assert token.expires_at.timestamp() == NOW + 300


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": ["other", AUDIENCE]},
        {"aud": "second"},
        {"iat": NOW, "nbf": NOW},
        {"iat": NOW + 30, "nbf": NOW + 30},
        {"exp": NOW - 29},
        {"exp": NOW + 0.5},
        {"more": {"deep": [1]}},
    ],
)
async def test_a_token_may_have_more_claims_and_a_little_less_time(verifier: Verifier, claims: dict[str, Any]) -> None:
    await verifier.token(KEY.sign(_claims(**claims)))


async def test_a_key_id_may_be_missing_when_one_key_fits(verifier: Verifier) -> None:
    await verifier.token(KEY.sign(_claims(), {"kid": None}))


@pytest.mark.parametrize(
    ("flaw", "claims"),
    [
        (Flaw.CLAIMS, {"exp": None}),
        (Flaw.CLAIMS, {"exp": str(NOW + 300)}),
        (Flaw.CLAIMS, {"exp": True}),
        (Flaw.CLAIMS, {"exp": (NOW + 300) * 1000}),
        (Flaw.MALFORMED, {"exp": float("nan")}),
        (Flaw.MALFORMED, {"exp": float("inf")}),
        (Flaw.CLAIMS, {"nbf": "now"}),
        (Flaw.CLAIMS, {"iat": [NOW]}),
        (Flaw.EXPIRED, {"exp": NOW - 30}),
        (Flaw.EXPIRED, {"exp": 0}),
        (Flaw.NOT_YET_VALID, {"nbf": NOW + 31}),
        (Flaw.NOT_YET_VALID, {"iat": NOW + 31}),
        (Flaw.AUDIENCE, {"aud": "other"}),
        (Flaw.AUDIENCE, {"aud": [["x"], AUDIENCE]}),
        (Flaw.AUDIENCE, {"aud": {AUDIENCE: 1}}),
        (Flaw.CLAIMS, {"aud": None}),
        (Flaw.CLAIMS, {"aud": []}),
        (Flaw.CLAIMS, {"sub": None}),
        (Flaw.CLAIMS, {"sub": 7}),
        (Flaw.CLAIMS, {"tenant": None}),
        (Flaw.CLAIMS, {"jti": 7}),
        (Flaw.MALFORMED, {"iss": None}),
        (Flaw.UNKNOWN_ISSUER, {"iss": "https://c.example"}),
        (Flaw.UNKNOWN_ISSUER, {"iss": f"{A}/"}),
        (Flaw.UNKNOWN_KEY, {"iss": B}),
    ],
)
async def test_a_signed_token_with_a_wrong_claim_is_refused(
    verifier: Verifier, flaw: Flaw, claims: dict[str, Any]
) -> None:
    assert await verifier.flaw(KEY.sign(_claims(**claims))) is flaw


async def test_the_key_of_one_issuer_does_not_sign_for_another(verifier: Verifier) -> None:
    forged = SigningKey("b-key", "ES256", KEY.private).sign(_claims(iss=B, tenant="acme"))
    assert await verifier.flaw(forged) is Flaw.SIGNATURE
    assert (await verifier.token(KEY_OF_B.sign(_claims(iss=B, tenant="acme")))).handle.tenant_id == "ten_b"


async def test_a_tenant_that_is_not_mapped_is_unknown(verifier: Verifier) -> None:
    outcome = await verifier.tokens.verify(KEY_OF_B.sign(_claims(iss=B)))
    assert outcome == Refusal(reason=Reason.UNKNOWN_TENANT)
    assert verifier.told == [RefusedToken(issuer=B, flaw=Flaw.UNKNOWN_TENANT)]


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signature", ["", "AAAA"])
async def test_a_token_without_a_signature_is_refused(verifier: Verifier, alg: str, signature: str) -> None:
    text = f"{_segment({'alg': alg, 'kid': KEY.kid})}.{_segment(_claims())}.{signature}"
    assert verifier.tokens.looks_like(text)
    assert await verifier.flaw(text) is Flaw.ALGORITHM


async def test_a_signature_taken_off_is_missed(verifier: Verifier) -> None:
    assert await verifier.flaw(KEY.sign(_claims()).rpartition(".")[0] + ".") is Flaw.SIGNATURE


@pytest.mark.parametrize("kid", [RSA.kid, None])
async def test_a_public_key_is_not_the_secret_of_an_hmac(verifier: Verifier, kid: str | None) -> None:
    pem = RSA.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for alg, header in (("HS256", {"alg": "HS256", "kid": kid}), ("RS256", {"alg": "RS256", "kid": kid})):
        signed = f"{_segment({k: v for k, v in header.items() if v})}.{_segment(_claims())}"
        forged = f"{signed}.{_segment(hmac.digest(pem, signed.encode(), 'sha256'))}"
        assert await verifier.flaw(forged) is (Flaw.ALGORITHM if alg == "HS256" else Flaw.SIGNATURE)


@pytest.mark.parametrize(
    ("flaw", "header"),
    [
        (Flaw.UNKNOWN_KEY, {"kid": "other"}),
        (Flaw.UNKNOWN_KEY, {"kid": ""}),
        (Flaw.UNKNOWN_KEY, {"kid": RSA.kid}),
        (Flaw.SIGNATURE, {"kid": "b-key"}),
        (Flaw.MALFORMED, {"crit": ["exp"], "exp": NOW}),
        (Flaw.MALFORMED, {"crit": ["b64"], "b64": True}),
        (Flaw.MALFORMED, {"crit": []}),
        (Flaw.MALFORMED, {"crit": False}),
    ],
)
async def test_a_header_that_names_another_key_or_asks_for_an_extension_is_refused(
    verifier: Verifier, flaw: Flaw, header: dict[str, Any]
) -> None:
    claims = _claims(iss=B) if header.get("kid") == "b-key" else _claims()
    assert await verifier.flaw(_raw(KEY, header, claims)) is flaw


@pytest.mark.parametrize("alg", ["RS384", "PS256", "ES384", "HS256", "RS256 ", "rs256"])
async def test_an_algorithm_that_the_issuer_does_not_use_is_refused(verifier: Verifier, alg: str) -> None:
    assert await verifier.flaw(_raw(RSA, {"alg": alg}, _claims())) is Flaw.ALGORITHM


@pytest.mark.parametrize("header", [{"alg": None}, {"alg": ["ES256"]}, {"alg": 7}, {"kid": 7}, {"kid": ["ES256-key"]}])
async def test_a_header_of_a_wrong_shape_is_refused(verifier: Verifier, header: dict[str, Any]) -> None:
    assert await verifier.flaw(_raw(KEY, header, _claims())) is Flaw.MALFORMED


async def test_keys_in_the_header_are_not_read(verifier: Verifier) -> None:
    stranger = SigningKey.generate("ES256", KEY.kid)
    header = {"jwk": stranger.jwk, "jku": "http://127.0.0.1:1/jwks", "x5u": "http://127.0.0.1:1/x", "x5c": ["AAAA"]}
    assert await verifier.flaw(stranger.sign(_claims(), header)) is Flaw.SIGNATURE
    await verifier.token(KEY.sign(_claims(), header))


async def test_a_changed_token_is_refused(verifier: Verifier) -> None:
    header, _, signature = KEY.sign(_claims()).split(".")
    assert await verifier.flaw(f"{header}.{_segment(_claims(tenant='ten_b'))}.{signature}") is Flaw.SIGNATURE
    other = _segment({"alg": "ES256", "typ": "JWT", "kid": KEY.kid, "x": 1})
    assert await verifier.flaw(f"{other}.{_segment(_claims())}.{signature}") is Flaw.SIGNATURE


def _raw(key: SigningKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A token that is signed rightly over any header at all."""
    whole = {name: value for name, value in {"alg": key.alg, "kid": key.kid, **header}.items() if value is not None}
    signed = f"{_segment(whole)}.{_segment(claims)}"
    algorithm = jwt.get_algorithm_by_name(key.alg)
    return f"{signed}.{_segment(algorithm.sign(signed.encode(), key.private))}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "a.b.c\n",
        "a b.c.d",
        "ä.b.c",
        "a=.b.c",
        "igw_live_x",
        "a.b." + "c" * MAX_LENGTH,
        "x" * 10_000_000,
        "\ud800.b.c",
    ],
    ids=lambda text: text[:12].encode(errors="replace").hex(),
)
async def test_what_is_shaped_otherwise_is_no_token(verifier: Verifier, text: str) -> None:
    assert not verifier.tokens.looks_like(text)
    assert await verifier.flaw(text) is Flaw.MALFORMED


@pytest.mark.parametrize(
    "text",
    [
        "a.b.c",
        "aaaaa.b.c",
        _unsigned([], CLAIMS),
        _unsigned({"alg": "ES256"}, []),
        _unsigned({"alg": "ES256"}, b"[" * 10_000),
        _unsigned(b'{"a":' * 2_000, CLAIMS),
        _unsigned({"alg": "ES256"}, b'{"iss":"x","a":' + b"[" * 9_000),
    ],
    ids=range(7),
)
async def test_junk_in_the_shape_of_a_token_is_refused(verifier: Verifier, text: str) -> None:
    assert verifier.tokens.looks_like(text)
    assert await verifier.flaw(text) is Flaw.MALFORMED


async def test_deep_claims_under_a_right_signature_are_refused(verifier: Verifier) -> None:
    header = _segment({"alg": "ES256", "kid": KEY.kid})
    deep = json.dumps(_claims())[:-1].encode() + b',"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    signed = f"{header}.{_segment(deep)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(signed.encode(), KEY.private)
    assert await verifier.flaw(f"{signed}.{_segment(signature)}") is Flaw.MALFORMED


async def test_a_token_is_held_until_its_time_and_leeway_have_passed(verifier: Verifier) -> None:
    text = KEY.sign(_claims())
    assert verifier.tokens.held(text) is None
    token = await verifier.token(text)
    verifier.now = NOW + 329
    assert await verifier.tokens.verify(text) is token
    verifier.now = NOW + 330
    assert verifier.tokens.held(text) is None
    assert await verifier.flaw(text) is Flaw.EXPIRED


async def test_the_least_recently_used_token_is_forgotten(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CAPACITY", 2)
    first, second, third = (KEY.sign(_claims(sub=sub)) for sub in "abc")
    await verifier.token(first)
    await verifier.token(second)
    assert verifier.tokens.held(first)
    await verifier.token(third)
    assert [verifier.tokens.held(text) is not None for text in (first, second, third)] == [True, False, True]


async def test_what_is_told_of_a_refusal_names_no_issuer_that_is_not_known(verifier: Verifier) -> None:
    await verifier.flaw(KEY.sign(_claims(iss="https://c.example")))
    await verifier.flaw(KEY.sign(_claims(aud="x")))
    assert verifier.told == [
        RefusedToken(issuer="", flaw=Flaw.UNKNOWN_ISSUER),
        RefusedToken(issuer=A, flaw=Flaw.AUDIENCE),
    ]


@pytest.fixture
def oidc() -> Iterator[OidcIssuer]:
    with running_issuer(now=lambda: NOW) as issuer:
        yield issuer


@pytest.fixture
async def fetch() -> AsyncIterator[JwksClient]:
    client = JwksClient(deadline_seconds=20)
    yield client
    await client.aclose()


@dataclass(slots=True)
class Monotonic:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def _over_network(oidc: OidcIssuer, fetch: JwksClient, monotonic: Monotonic) -> TokenVerifier:
    [issuer] = parse_issuers(oidc.setting())
    keys = KeySet(issuer, fetch, now=monotonic, pace=Pace(patience=20))
    return TokenVerifier([issuer], {issuer.issuer: keys}, now=lambda: NOW)


async def test_a_held_token_is_dropped_with_its_key(oidc: OidcIssuer, fetch: JwksClient) -> None:
    verifier = _over_network(oidc, fetch, Monotonic())
    old = oidc.token()
    assert isinstance(await verifier.verify(old), VerifiedToken)
    oidc.rotate()
    assert verifier.held(old), "the gateway has not heard of it yet"
    assert isinstance(await verifier.verify(oidc.token()), VerifiedToken)
    assert verifier.held(old) is None
    assert await verifier.verify(old) == Refusal(reason=Reason.INVALID_TOKEN)


async def test_an_outage_refuses_with_503_only_who_needs_keys_that_are_not_held(
    oidc: OidcIssuer, fetch: JwksClient
) -> None:
    monotonic = Monotonic()
    verifier = _over_network(oidc, fetch, monotonic)
    unavailable = Refusal(reason=Reason.IDENTITY_UNAVAILABLE, retry_after_ms=1000)
    oidc.down()
    assert await verifier.verify(oidc.token()) == unavailable
    oidc.up()
    monotonic.now += 10
    assert isinstance(await verifier.verify(oidc.token(sub="first")), VerifiedToken)
    oidc.down()
    monotonic.now += 1_000_000
    assert isinstance(await verifier.verify(oidc.token(sub="second")), VerifiedToken)
    oidc.add_key()
    assert await verifier.verify(oidc.token()) == unavailable


async def test_a_background_task_has_the_keys_before_the_first_caller(oidc: OidcIssuer, fetch: JwksClient) -> None:
    had = asyncio.Event()

    def observe(event: KeySetStatus | RefusedToken) -> None:
        if isinstance(event, KeySetStatus) and event.keys:
            had.set()

    verifier = TokenVerifier.of(
        parse_issuers(oidc.setting()), fetch, now=lambda: NOW, monotonic=Monotonic(), observe=observe
    )
    task = asyncio.create_task(verifier.run())
    async with asyncio.timeout(20):
        await had.wait()
    task.cancel()
    with oidc.slow():
        assert isinstance(await verifier.verify(oidc.token()), VerifiedToken)
    assert oidc.fetches == 1


@pytest.mark.parametrize("alg", ["RS256", "EdDSA"])
async def test_keys_of_every_type_come_over_the_network(oidc: OidcIssuer, fetch: JwksClient, alg: str) -> None:
    oidc.add_key(alg)
    verifier = _over_network(oidc, fetch, Monotonic())
    assert isinstance(await verifier.verify(oidc.token()), VerifiedToken)


_SEGMENTS = st.one_of(
    st.text(),
    st.from_regex(r"[\w-]*", fullmatch=True),
    st.binary().map(_segment),
    st.dictionaries(st.sampled_from(["alg", "kid", "crit", "iss"]), st.sampled_from(["ES256", A, KEY.kid, None])).map(
        _segment
    ),
)


@given(st.one_of(st.text(), st.lists(_SEGMENTS, min_size=3, max_size=3).map(".".join)))
def test_any_text_is_refused_and_none_raises(text: str) -> None:
    verifier = _verifier().tokens
    assert verifier.held(text) is None
    outcome = asyncio.run(verifier.verify(text))
    assert outcome == Refusal(reason=Reason.INVALID_TOKEN)
    assert verifier.looks_like(text) in {True, False}
