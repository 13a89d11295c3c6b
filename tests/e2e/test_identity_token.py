"""Can the Router know offline, from one signed header, on whose behalf a request comes?"""

from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from jwt import PyJWKSet

from authz.principal import PrincipalKind
from store import signing_keys
from store.database import opened
from tests.e2e import callers
from tests.support.gateway import PEPPER, TRAIL, Gateway, running, until

AUDIENCE, ISSUER = "inference-router", "inference-gateway"


async def _jwks(gateway: Gateway) -> PyJWKSet:
    async with gateway.client() as client:
        answer = await client.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == "public, max-age=300"
    for key in answer.json()["keys"]:
        assert (key["kty"], key["crv"], key["use"]) == ("OKP", "Ed25519", "sig")
        assert "d" not in key, "the private half"
    return PyJWKSet.from_dict(answer.json())


async def _token(gateway: Gateway, client: Any) -> str:
    answer = await client.post("/v1/infer", json=callers.INFER)
    assert answer.status_code == 200, answer.text
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    [token] = [value for name, value in seen["headers"] if name == "x-gateway-identity"]
    return str(token)


def _verified(token: str, keys: PyJWKSet) -> dict[str, Any]:
    """As a Router would: with the published keys alone."""
    kid = jwt.get_unverified_header(token)["kid"]
    options: Any = {"require": ["exp", "iat", "sub"]}
    return jwt.decode(token, keys[kid], algorithms=["EdDSA"], audience=AUDIENCE, issuer=ISSUER, options=options)


async def test_the_router_can_verify_who_calls_offline(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    caller = await callers.key(gateway, tenant)
    keys = await _jwks(gateway)
    async with caller.client(gateway) as client:
        claims = _verified(await _token(gateway, client), keys)
    assert claims["sub"] == f"key_{caller.key_id}"
    assert (claims["tenant"], claims["plan"], claims["kind"]) == (tenant.id, tenant.plan, PrincipalKind.API_KEY)
    assert claims["scope"] == "inference:text models:read"
    assert claims["exp"] - claims["iat"] <= 60


async def test_one_token_serves_many_requests(gateway: Gateway) -> None:
    caller = await callers.key(gateway, await gateway.tenant())
    async with caller.client(gateway) as client:
        tokens = {await _token(gateway, client) for _ in range(20)}
    assert len(tokens) <= 4, "one for each of the two workers, and one more each if half a lifetime ended just now"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/infer"])
async def test_a_forged_identity_never_arrives(gateway: Gateway, path: str) -> None:
    caller = await callers.key(gateway, await gateway.tenant())
    forged = jwt.encode({"sub": "key_evil"}, "secret" * 10, algorithm="HS256")
    async with caller.client(gateway) as client:
        client.headers["x-gateway-identity"] = forged
        method = "GET" if path == "/v1/models" else "POST"
        answer = await client.request(method, path, json=callers.INFER if method == "POST" else None)
        assert answer.status_code == 200
        sessions = await client.get("/v1/sessions")
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    assert forged not in str(seen)
    assert sessions.json()["data"] == []


async def test_keys_roll_over_without_a_refusal() -> None:
    env = {"GATEWAY_ROUTER_API_KEY": "known-to-the-router-alone"}
    with running(workers=2, env=env) as gateway:
        caller = await callers.key(gateway, await gateway.tenant())
        async with caller.client(gateway) as client, opened(gateway.dsn) as pool:
            before = await _jwks(gateway)
            first = await _token(gateway, client)
            _verified(first, before)
            # The next key is published at once, and does not sign yet.
            made = await signing_keys.rotate(pool, PEPPER.encode(), TRAIL, _now())
            await until(lambda: _with(gateway, made.id))
            after = await _jwks(gateway)
            for _ in range(6):
                _verified(await _token(gateway, client), before)
            _verified(first, after)
            # As if ten minutes had passed.
            await pool.execute("UPDATE signing_keys SET active_from = now() WHERE id = $1", made.id)

            async def signs() -> bool:
                return bool(jwt.get_unverified_header(await _token(gateway, client))["kid"] == made.id)

            for _ in range(6):
                await until(signs)
            _verified(await _token(gateway, client), after)
            _verified(first, await _jwks(gateway))
            # A stolen key: nobody signs with it any more, and it is published no more.
            last = await signing_keys.rotate(pool, PEPPER.encode(), TRAIL, _now(), at_once=True)
            await until(lambda: _with(gateway, last.id))
            keys = await _jwks(gateway)
            assert [key.key_id for key in keys.keys] == [last.id]
            await until(lambda: _signed_by(gateway, client, last.id))
            answer = await client.post("/v1/infer", json=callers.INFER)
        seen = await gateway.seen(answer.headers["x-request-id"])
        assert seen is not None
        assert dict(seen["headers"])["x-internal-api-key"] == env["GATEWAY_ROUTER_API_KEY"]


async def _with(gateway: Gateway, kid: str) -> bool:
    return kid in {key.key_id for key in (await _jwks(gateway)).keys}


async def _signed_by(gateway: Gateway, client: Any, kid: str) -> bool:
    return bool(jwt.get_unverified_header(await _token(gateway, client))["kid"] == kid)


def _now() -> datetime:
    return datetime.now(UTC)
