"""Identity tokens: what is in them, how often they are made, and which of them the gateway itself believes."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from authz import identity_token
from authz.grant import Grant
from authz.identity_token import CONTROL_AUDIENCE, ROUTER_AUDIENCE, Caller, IdentityTokens, SignedToken, read_caller
from authz.key_ring import KeyRing, SigningKey, generate
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope
from tests.support.values import Clock, grant, slots

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EPOCH = int(NOW.timestamp())
HANDLE = Handle(PrincipalKind.JWT, "jwt_1", tenant_id="ten_a", plan="pro", roles=("inference", "viewer"))
CLAIMED = frozenset({Scope.USAGE_READ, Scope.KEYS_READ})


def key() -> SigningKey:
    return generate(created_at=NOW, active_from=NOW)


KEY = key()
RING = KeyRing((KEY,))


@pytest.fixture
def clock() -> Clock:
    return Clock(ms=1000 * EPOCH)


@pytest.fixture
def tokens(clock: Clock) -> IdentityTokens:
    made = IdentityTokens(now=clock.now)
    made.use(RING)
    return made


def there(token: SignedToken | None) -> SignedToken:
    assert token is not None
    return token


def claims_of(token: SignedToken | None, audience: str) -> dict[str, Any]:
    options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
    found: dict[str, Any] = jwt.decode(
        there(token).text, KEY.public, algorithms=["EdDSA"], audience=audience, options=options
    )
    return found


def test_a_token_for_the_router_says_who_calls(tokens: IdentityTokens) -> None:
    token = there(tokens.for_router(grant(plan="pro", scopes=("inference:text", "models:read"))))
    assert claims_of(token, ROUTER_AUDIENCE) == {
        "iss": "inference-gateway",
        "aud": "inference-router",
        "sub": "key_k",
        "org": "org_a",
        "tenant": "ten_a",
        "kind": "api_key",
        "plan": "pro",
        "scope": "inference:text models:read",
        "iat": EPOCH,
        "nbf": EPOCH,
        "exp": EPOCH + 60,
    }
    assert jwt.get_unverified_header(token.text) == {"alg": "EdDSA", "typ": "JWT", "kid": KEY.id}
    assert token.renew_at == EPOCH + 30
    assert token.text not in repr(token)


def test_a_token_for_a_session_names_it(tokens: IdentityTokens) -> None:
    assert claims_of(tokens.for_router(grant(session_id="ses_1")), ROUTER_AUDIENCE)["sid"] == "ses_1"


def test_a_token_for_the_control_api_is_read_back_whole(tokens: IdentityTokens) -> None:
    who = grant(session_id="ses_1", plan="pro", principal_kind=PrincipalKind.JWT, principal_id="jwt_1")
    token = there(tokens.for_control(who, HANDLE, CLAIMED))
    assert read_caller(token.text, RING, NOW) == Caller(
        organization_id="org_a",
        tenant_id="ten_a",
        principal_id="jwt_1",
        principal_kind=PrincipalKind.JWT,
        plan="pro",
        scopes=frozenset({Scope.ADMIN}),
        session_id="ses_1",
        handle=HANDLE,
        claimed_scopes=CLAIMED,
    )
    plain = there(tokens.for_control(grant(), Handle(PrincipalKind.API_KEY, "k"), frozenset()))
    caller = read_caller(plain.text, RING, NOW)
    assert caller is not None
    assert (caller.session_id, caller.handle, caller.claimed_scopes) == ("", ("api_key", "k", "", "", ()), frozenset())


def test_a_token_is_made_once_in_half_a_lifetime(tokens: IdentityTokens, clock: Clock) -> None:
    first = tokens.for_router(grant())
    clock.ms += 29_999
    assert tokens.for_router(grant()) is first
    clock.ms += 1
    second = there(tokens.for_router(grant()))
    assert second is not first
    assert second.renew_at == EPOCH + 60
    assert tokens.for_router(grant()) is second


def test_a_token_is_good_until_it_is_asked_for_anew_and_as_long_again(tokens: IdentityTokens, clock: Clock) -> None:
    clock.ms += 999  # what is made late in a second counts from its beginning
    token = there(tokens.for_router(grant()))
    claims = claims_of(token, ROUTER_AUDIENCE)
    assert claims["exp"] - token.renew_at == 30
    assert claims["exp"] - clock.now() <= 60


def test_limits_make_no_other_token_and_identity_does(tokens: IdentityTokens) -> None:
    token = tokens.for_router(grant())
    assert tokens.for_router(grant(slots(3), models=("m",))) is token
    others: list[Grant] = [
        grant(**{name: "x"}) for name in ("tenant_id", "organization_id", "principal_id", "plan", "session_id")
    ]
    others += [grant(scopes=("inference:text",)), grant(principal_kind=PrincipalKind.SESSION)]
    assert len({there(tokens.for_router(other)).text for other in (*others, grant())}) == len(others) + 1
    control = tokens.for_control(grant(), HANDLE, CLAIMED)
    assert tokens.for_control(grant(), HANDLE, CLAIMED) is control
    assert tokens.for_control(grant(), HANDLE, frozenset()) is not control
    assert tokens.for_control(grant(), HANDLE._replace(roles=()), CLAIMED) is not control


def test_only_so_many_are_remembered(tokens: IdentityTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_token, "_CAPACITY", 2)
    first, second = (tokens.for_router(grant(principal_id=name)) for name in ("a", "b"))
    assert tokens.for_router(grant(principal_id="a")) is first
    tokens.for_router(grant(principal_id="c"))
    assert tokens.for_router(grant(principal_id="a")) is first
    assert tokens.for_router(grant(principal_id="b")) is not second


def test_without_a_key_there_is_no_token(clock: Clock) -> None:
    tokens = IdentityTokens(now=clock.now)
    assert tokens.for_router(grant()) is None
    assert tokens.for_control(grant(), HANDLE, CLAIMED) is None
    tokens.use(KeyRing((generate(created_at=NOW, active_from=NOW + timedelta(minutes=10)),)))
    assert tokens.for_router(grant()) is None
    clock.ms += 600_000
    assert tokens.for_router(grant()) is not None


def test_a_new_key_leaves_the_tokens_that_are_good(tokens: IdentityTokens, clock: Clock) -> None:
    token = tokens.for_router(grant())
    clock.ms += 10_000
    later = key()
    tokens.use(KeyRing((replace(KEY, retired_at=NOW + timedelta(minutes=10)), later)))
    assert tokens.for_router(grant()) is token
    clock.ms += 20_000
    renewed = there(tokens.for_router(grant()))
    assert jwt.get_unverified_header(renewed.text)["kid"] in {KEY.id, later.id}


@pytest.mark.parametrize("ring", [(), (replace(KEY, retired_at=NOW),)])
def test_what_a_retired_key_signed_is_not_handed_out_again(
    tokens: IdentityTokens, ring: tuple[SigningKey, ...]
) -> None:
    tokens.for_router(grant())
    other = key()
    tokens.use(KeyRing((*ring, other)))
    assert jwt.get_unverified_header(there(tokens.for_router(grant())).text)["kid"] == other.id
    tokens.use(KeyRing(ring))
    assert tokens.for_router(grant()) is None


def signed(*, by: SigningKey = KEY, kid: str | None = KEY.id, algorithm: str = "EdDSA", **changes: Any) -> str:
    """A token for the control API, changed; a claim that is None is left out."""
    claims: dict[str, Any] = {
        "iss": "inference-gateway",
        "aud": CONTROL_AUDIENCE,
        "sub": "key_k",
        "org": "org_a",
        "tenant": "ten_a",
        "kind": "api_key",
        "plan": "free",
        "scope": "admin",
        "handle": ["api_key", "k", "", "", []],
        "claimed_scopes": "",
        "iat": EPOCH,
        "nbf": EPOCH,
        "exp": EPOCH + 60,
    }
    whole = {name: value for name, value in (claims | changes).items() if value is not None}
    headers = {} if kid is None else {"kid": kid}
    if algorithm == "none":
        return jwt.encode(whole, "", algorithm="none", headers=headers)
    if algorithm == "HS256":  # with the public key, which everybody knows, as the secret
        return jwt.encode(whole, by.public.public_bytes_raw(), algorithm="HS256", headers=headers)
    return jwt.encode(whole, by.private, algorithm=algorithm, headers=headers)


def test_a_caller_is_believed() -> None:
    assert read_caller(signed(), RING, NOW) is not None
    assert read_caller(signed(), RING, NOW + timedelta(seconds=59)) is not None
    assert read_caller(signed(nbf=EPOCH + 5), RING, NOW) is not None  # another machine's clock


def test_what_is_added_to_the_claims_later_does_no_harm() -> None:
    caller = read_caller(signed(scope="admin new:scope", more=1), RING, NOW)
    assert caller is not None
    assert caller.scopes == {Scope.ADMIN}


OTHER = key()
WRONG: dict[str, Callable[[], str]] = {
    "nothing": lambda: "",
    "no token": lambda: "a.b.c",
    "for the router": lambda: signed(aud=ROUTER_AUDIENCE),
    "for nobody": lambda: signed(aud=None),
    "by another issuer": lambda: signed(iss="https://issuer.example"),
    "by no issuer": lambda: signed(iss=None),
    "expired": lambda: signed(exp=EPOCH),
    "without an end": lambda: signed(exp=None),
    "with an end that is no time": lambda: signed(exp="soon"),
    "with an end that is a list": lambda: signed(exp=[EPOCH + 60]),
    "from the future": lambda: signed(nbf=EPOCH + 6),
    "without a beginning": lambda: signed(nbf=None),
    "by another key": lambda: signed(by=OTHER, kid=OTHER.id),
    "by another key under a known id": lambda: signed(by=OTHER),
    "without a key's id": lambda: signed(kid=None),
    "unsigned": lambda: signed(algorithm="none"),
    "signed with the public key as a secret": lambda: signed(algorithm="HS256"),
    "cut": lambda: signed()[:-4],
    "of nobody": lambda: signed(sub=None),
    "without a handle": lambda: signed(handle=None),
    "with another kind of handle": lambda: signed(handle=["cat", "k"]),
    "without a tenant": lambda: signed(tenant=None),
}


@pytest.mark.filterwarnings("ignore:.*HMAC key is.*")
@pytest.mark.parametrize("wrong", WRONG)
def test_any_other_token_is_nobodys(wrong: str) -> None:
    assert read_caller(WRONG[wrong](), RING, NOW) is None


def test_a_retired_key_is_believed_no_more() -> None:
    assert read_caller(signed(), KeyRing((replace(KEY, retired_at=NOW),)), NOW) is None
