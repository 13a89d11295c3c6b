"""Every kind of credential, right and in every way wrong, and together with others, through the public listener."""

import ssl
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx
import jwt
import pytest

from authz import api_key, session
from quota.limit import requests_per_minute
from tests.e2e import callers
from tests.e2e.callers import Caller, code, everywhere
from tests.support.client_certificates import Issuer, dns, uri
from tests.support.gateway import Gateway, Tenant, until
from tests.support.oidc import OidcIssuer, SigningKey

Make = Callable[[Gateway, OidcIssuer, Tenant], Awaitable[Caller]]


async def _key(gateway: Gateway, _: OidcIssuer, tenant: Tenant) -> Caller:
    return await callers.key(gateway, tenant)


async def _jwt(_: Gateway, issuer: OidcIssuer, tenant: Tenant) -> Caller:
    return await callers.subject(issuer, tenant)


async def _workload(gateway: Gateway, _: OidcIssuer, tenant: Tenant) -> Caller:
    return await callers.workload(gateway, tenant)


async def _session_of_key(gateway: Gateway, _: OidcIssuer, tenant: Tenant) -> Caller:
    return await callers.session(gateway, await callers.key(gateway, tenant))


async def _session_of_jwt(gateway: Gateway, issuer: OidcIssuer, tenant: Tenant) -> Caller:
    return await callers.session(gateway, await callers.subject(issuer, tenant))


KINDS = {
    "key": _key,
    "jwt": _jwt,
    "workload": _workload,
    "session of a key": _session_of_key,
    "session of a JWT": _session_of_jwt,
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


@every_kind
@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_every_kind_of_caller_is_known_to_the_router(
    gateway: Gateway, issuer: OidcIssuer, make: Make, *, http2: bool
) -> None:
    tenant = await gateway.tenant()
    caller = await make(gateway, issuer, tenant)
    async with caller.client(gateway, http2=http2) as client:
        answer = await client.post("/v1/infer", json=callers.INFER)
    assert answer.status_code == 200, answer.text
    seen = await gateway.seen(answer.headers["x-request-id"])
    assert seen is not None
    headers = dict(seen["headers"])
    assert headers["x-tenant-id"] == tenant.id
    assert headers["x-scopes"] == "inference:text models:read"
    for credential in (*caller.headers.values(), *callers.INFER):
        assert credential not in {value for name, value in headers.items() if name != "x-gateway-identity"}
    row = await gateway.row(answer.headers["x-request-id"])
    assert row.admission.principal_id == headers["x-principal-id"]


@every_kind
@pytest.mark.parametrize("level", ["organization", "tenant", "principal"])
async def test_every_kind_of_caller_is_stopped_by_a_suspension_at_every_level(
    gateway: Gateway, issuer: OidcIssuer, make: Make, level: str
) -> None:
    caller = await make(gateway, issuer, await gateway.tenant())
    async with caller.client(gateway) as client:
        await everywhere(client, "200")
        await caller.suspend(gateway, level)
        await everywhere(client, f"{level}_suspended")


@every_kind
async def test_every_kind_of_caller_must_come_from_the_tenants_networks(
    gateway: Gateway, issuer: OidcIssuer, make: Make
) -> None:
    tenant = await gateway.tenant()
    caller = await make(gateway, issuer, tenant)
    async with caller.client(gateway) as client:
        await callers.change_tenant(gateway, tenant, networks=("10.0.0.0/8",))
        await everywhere(client, "network_not_allowed")
        await callers.change_tenant(gateway, tenant, networks=("10.0.0.0/8", "127.0.0.0/8"))
        await everywhere(client, "200")


async def _is(client: object, expected: str) -> bool:
    return await code(client) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
async def test_a_key_is_taken_in_the_header_its_clients_use(gateway: Gateway, header: str) -> None:
    caller = await callers.key(gateway, await gateway.tenant(), header=header)
    async with caller.client(gateway) as client:
        assert await code(client) == "200"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "invalid_api_key"),
        ("nonsense", "invalid_api_key"),
        ("unknown", "invalid_api_key"),
        ("mistyped", "invalid_api_key"),
        ("another secret", "invalid_api_key"),
        ("unknown session", "invalid_session"),
        ("x.y.z", "invalid_token"),
    ],
)
async def test_what_is_no_credential_opens_nothing(gateway: Gateway, given: str, expected: str) -> None:
    tenant = await gateway.tenant()
    right = tenant.key
    forged = api_key.generate("test", public_id=tenant.key_id).text
    token = {
        "unknown": api_key.generate("test").text,
        "mistyped": right[:-1] + ("0" if right[-1] != "0" else "1"),
        "another secret": forged,
        "unknown session": session.generate(3).text,
    }.get(given, given)
    async with gateway.client() as client:
        answer = await client.post("/v1/infer", json=callers.INFER, headers={"x-api-key": token})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == expected
    assert answer.headers["www-authenticate"] == 'Bearer realm="inference-gateway", error="invalid_token"'


async def test_a_key_ends_when_it_expires(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    caller = await callers.key(gateway, tenant, expires_at=datetime.now(UTC) + timedelta(seconds=2))
    async with caller.client(gateway) as client:
        assert await code(client) == "200"
        await until(lambda: _is(client, "invalid_api_key"))


async def test_what_a_key_may_do_is_its_own(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    small = await callers.key(gateway, tenant, models=("small", "mini-*"))
    async with small.client(gateway) as client:
        for model, expected in {"small": "200", "mini-2": "200", "large": "model_not_allowed"}.items():
            assert await code(client, json={**callers.INFER, "model": model}) == expected
        ambiguous = b'{"input": "x", "model": "small", "Model": "large"}'
        answer = await client.post("/v1/infer", headers={"content-type": "application/json"}, content=ambiguous)
        assert answer.json()["error"]["param"] == "model"
    elsewhere = await callers.key(gateway, tenant, networks=("203.0.113.0/24",))
    async with elsewhere.client(gateway) as client:
        assert await code(client) == "network_not_allowed"
    twice = await callers.key(gateway, tenant, limits=(requests_per_minute(2),))
    async with twice.client(gateway) as client:
        assert [await code(client) for _ in range(3)] == ["200", "200", "rate_limit_exceeded"]
    other = await callers.key(gateway, tenant)
    async with other.client(gateway) as client:
        assert await code(client) == "200", "the limit was the key's own"


def _signed(issuer: OidcIssuer, tenant: Tenant, **claims: object) -> str:
    return issuer.token(tenant=tenant.id, **claims)  # type: ignore[arg-type]


async def test_a_jwt_is_refused_for_everything_that_is_wrong_with_it(gateway: Gateway, issuer: OidcIssuer) -> None:
    tenant = await gateway.tenant()
    now = int(time.time())
    right = _signed(issuer, tenant)
    claims = jwt.decode(right, options={"verify_signature": False})
    foreign = SigningKey.generate("ES256", kid=issuer.key().kid)
    public = str(issuer.jwks)
    wrong = {
        "alg none": jwt.encode(claims, "", algorithm="none"),
        "HMAC with the public key": jwt.encode(
            claims, public.ljust(64), algorithm="HS256", headers={"kid": issuer.key().kid}
        ),
        "unknown kid": SigningKey.generate("ES256").sign(claims),
        "another key under the kid": foreign.sign(claims),
        "no exp": _signed(issuer, tenant, exp=None),
        "expired": _signed(issuer, tenant, exp=now - 3600),
        "not yet": _signed(issuer, tenant, nbf=now + 3600),
        "foreign issuer": _signed(issuer, tenant, iss="https://elsewhere.example"),
        "foreign audience": _signed(issuer, tenant, aud="another-service"),
        "no tenant": issuer.token(tenant=None),
        "no subject": _signed(issuer, tenant, sub=None),
        "changed": right.replace(right.split(".")[1], right.split(".")[1][:-2] + "AA"),
        "cut": right[:-4],
    }
    async with gateway.client() as client:
        assert await code(client, headers={"authorization": f"Bearer {right}"}) == "200"
        for name, token in wrong.items():
            assert await code(client, headers={"authorization": f"Bearer {token}"}) == "invalid_token", name
        unknown = issuer.token(tenant="ten_nowhere")
        assert await code(client, headers={"authorization": f"Bearer {unknown}"}) == "unknown_tenant"


async def test_an_issuer_rotates_its_keys_goes_down_and_comes_back(gateway: Gateway, issuer: OidcIssuer) -> None:
    tenant = await gateway.tenant()
    async with gateway.client() as client:

        async def passes(token: str) -> bool:
            return await code(client, headers={"authorization": f"Bearer {token}"}) == "200"

        before = _signed(issuer, tenant)
        assert await passes(before)
        issuer.add_key()
        after = _signed(issuer, tenant)
        # Unknown keys are fetched at most once an interval, by each worker.
        async with gateway.client(headers={"authorization": f"Bearer {after}"}) as renewed:
            await everywhere(renewed, "200")
        assert await passes(before)
        issuer.down()
        try:
            fresh = _signed(issuer, tenant, sub="somebody new")
            await until(lambda: passes(fresh))
            assert await passes(before)
        finally:
            issuer.up()
        assert await passes(fresh)


async def test_a_certificate_of_nobody_known_opens_nothing_and_harms_nobody(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    stranger = gateway.issuer.issue(uri("spiffe://example.test/stranger"))
    named = gateway.issuer.issue(dns("host.example.test"))
    for certificate in (stranger, named):
        async with gateway.client(certificate=certificate) as client:
            assert await code(client) == "unknown_certificate"
        async with gateway.client(tenant, certificate=certificate) as client:
            assert await code(client) == "200"


async def test_a_certificate_of_another_authority_ends_the_handshake(gateway: Gateway, tmp_path: object) -> None:
    caller = await callers.workload(gateway, await gateway.tenant())
    assert caller.certificate is not None
    foreign = Issuer(tmp_path).issue(uri("spiffe://example.test/robot"))  # type: ignore[arg-type]
    expired = gateway.issuer.issue_expired(uri("spiffe://example.test/robot"))
    for certificate in (foreign, expired):
        async with gateway.client(certificate=certificate) as client:
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await client.post("/v1/infer", json=callers.INFER)


async def test_a_tenant_can_demand_a_certificate_beside_the_key(gateway: Gateway) -> None:
    tenant, other = await gateway.tenant(), await gateway.tenant()
    robot, foreign = await callers.workload(gateway, tenant), await callers.workload(gateway, other)
    await callers.change_tenant(gateway, tenant, certificate_required=True)
    async with gateway.client(tenant) as client:
        await until(lambda: _is(client, "certificate_required"))
    async with gateway.client(tenant, certificate=robot.certificate) as client:
        await until(lambda: _is(client, "200"))
    async with gateway.client(tenant, certificate=foreign.certificate) as client:
        assert await code(client) == "conflicting_credentials"
    async with robot.client(gateway) as client:
        assert await code(client) == "200"


async def test_two_credentials_that_do_not_agree_are_refused(gateway: Gateway, issuer: OidcIssuer) -> None:
    one, two = await gateway.tenant(), await gateway.tenant()
    robot = await callers.workload(gateway, one)
    token = _signed(issuer, two)
    async with gateway.client(one) as client:
        assert await code(client, headers={"x-api-key": two.key}) == "conflicting_credentials"
        assert await code(client, headers={"x-api-key": one.key}) == "200"
        assert await code(client, headers={"api-key": token}) == "conflicting_credentials"
    async with robot.client(gateway) as client:
        assert await code(client, headers={"authorization": f"Bearer {token}"}) == "conflicting_credentials"
        assert await code(client, headers={"x-api-key": one.key}) == "200"
