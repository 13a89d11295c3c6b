"""The public keys, for any Router that asks."""

from dataclasses import replace

import jwt

from authz.identity_token import IdentityTokens
from authz.key_ring import KeyRing, generate
from tests.control.conftest import Api
from tests.support.values import grant

PATH = "/.well-known/jwks.json"


async def test_anybody_may_have_the_public_keys_and_keep_them_for_a_while(offline: Api) -> None:
    answer = await offline.call("GET", PATH, headers={})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert offline.ring is not None
    assert answer.json() == {"keys": [dict(offline.ring.keys[0].jwk)]}


async def test_nothing_private_is_in_it(offline: Api) -> None:
    (key,) = (await offline.call("GET", PATH, headers={})).json()["keys"]
    assert set(key) == {"kty", "crv", "x", "kid", "use", "alg"}


async def test_a_router_verifies_a_token_with_it(offline: Api) -> None:
    tokens = IdentityTokens(now=offline.clock.now)
    tokens.use(offline.ring or KeyRing())
    signed = tokens.for_router(grant())
    assert signed is not None
    keys = jwt.PyJWKSet.from_dict((await offline.call("GET", PATH, headers={})).json())
    key = keys[jwt.get_unverified_header(signed.text)["kid"]]
    claims = jwt.decode(
        signed.text, key, algorithms=["EdDSA"], audience="inference-router", options={"verify_exp": False}
    )
    assert claims["sub"] == "key_k"


async def test_a_key_that_signs_later_is_published_and_one_that_is_retired_is_not(offline: Api) -> None:
    now = offline.now()
    assert offline.ring is not None
    (signing,) = offline.ring.keys
    after = generate(created_at=now, active_from=now.replace(year=now.year + 1))
    offline.ring = KeyRing((signing, after))
    offline.ring = KeyRing((*offline.ring.keys, replace(signing, id="retired", retired_at=now)))
    published = [key["kid"] for key in (await offline.call("GET", PATH, headers={})).json()["keys"]]
    assert set(published) == {signing.id, after.id}


async def test_while_they_are_not_known_it_says_so_and_nobody_keeps_that(offline: Api) -> None:
    offline.ring = None
    answer = await offline.call("GET", PATH, headers={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
    assert answer.headers["cache-control"] == "no-store"


async def test_it_is_only_read(offline: Api) -> None:
    answer = await offline.call("POST", PATH, headers={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
