"""How soon does a change of identity hold on every worker, and what holds while Postgres cannot be asked?"""

from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import psutil
import pytest

from authz import api_key
from quota.limit import requests_per_minute
from store import api_keys, plans, roles, tenants
from store.api_keys import NewSecret
from store.database import opened
from store.plans import PlanChanges
from tests.e2e import callers
from tests.e2e.callers import Caller, code, everywhere
from tests.support.gateway import PEPPER, TRAIL, Gateway, running, until
from tests.support.oidc import OidcIssuer


async def _everywhere(gateway: Gateway, caller: Caller, expected: str) -> None:
    async with caller.client(gateway) as client:
        await everywhere(client, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scopes": ("usage:read",)}, "insufficient_scope"),
        ({"networks": ("203.0.113.0/24",)}, "network_not_allowed"),
        ({"models": ("another",)}, "model_not_allowed"),
    ],
)
async def test_a_changed_key_holds_on_every_worker(gateway: Gateway, change: dict[str, object], expected: str) -> None:
    caller = await callers.key(gateway, await gateway.tenant())
    await _everywhere(gateway, caller, "200")
    await callers.change_key(gateway, caller, **change)
    await _everywhere(gateway, caller, expected)
    await callers.change_key(gateway, caller, scopes=callers.SCOPES, networks=(), models=())
    await _everywhere(gateway, caller, "200")


async def test_an_edited_role_and_an_edited_plan_hold_on_every_worker(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    role = f"r{tenant.id.removeprefix('ten_')}"
    async with opened(gateway.dsn) as pool:
        await roles.create(pool, role, callers.SCOPES, trail=TRAIL)
        caller = await callers.key(gateway, tenant, scopes=(), roles=(role,))
        await _everywhere(gateway, caller, "200")
        await roles.update(pool, role, ("usage:read",), trail=TRAIL)
        await _everywhere(gateway, caller, "insufficient_scope")
        await roles.update(pool, role, callers.SCOPES, trail=TRAIL)
        await _everywhere(gateway, caller, "200")
        await plans.update(pool, tenant.plan, PlanChanges(limits=(requests_per_minute(0),)), trail=TRAIL)
        await _everywhere(gateway, caller, "exceeds_limit")


async def test_a_deleted_tenant_lets_nobody_in(gateway: Gateway, issuer: OidcIssuer) -> None:
    tenant = await gateway.tenant()
    of_all_kinds = [
        await callers.key(gateway, tenant),
        await callers.subject(issuer, tenant),
        await callers.workload(gateway, tenant),
        await callers.session(gateway, await callers.key(gateway, tenant)),
    ]
    for caller in of_all_kinds:
        await _everywhere(gateway, caller, "200")
    async with opened(gateway.dsn) as pool:
        await tenants.delete(pool, tenant.id, now=datetime.now(UTC), trail=TRAIL)
    expected = ("invalid_api_key", "unknown_tenant", "unknown_certificate", "invalid_session")
    for caller, refusal in zip(of_all_kinds, expected, strict=True):
        await _everywhere(gateway, caller, refusal)


async def test_a_rotated_key_opens_with_both_secrets_until_the_overlap_ends(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    former = Caller(tenant=tenant, headers=tenant.headers, key_id=tenant.key_id)
    await _everywhere(gateway, former, "200")
    fresh = api_key.generate("test", public_id=tenant.key_id)
    async with opened(gateway.dsn) as pool:
        new = NewSecret(key=fresh, overlap=timedelta(seconds=10))
        await api_keys.rotate(pool, new, pepper=PEPPER.encode(), now=datetime.now(UTC), trail=TRAIL)
    after = Caller(tenant=tenant, headers={"x-api-key": fresh.text}, key_id=fresh.id)
    await _everywhere(gateway, after, "200")
    await _everywhere(gateway, former, "invalid_api_key")  # when the overlap has ended
    await _everywhere(gateway, after, "200")
    async with opened(gateway.dsn) as pool:

        async def used() -> bool:
            return (await api_keys.find(pool, tenant.key_id)).last_used_at is not None

        await until(used)


async def test_a_revoked_key_never_comes_back(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    caller = Caller(tenant=tenant, headers=tenant.headers, key_id=tenant.key_id)
    await _everywhere(gateway, caller, "200")
    await gateway.revoke(tenant)
    await _everywhere(gateway, caller, "invalid_api_key")
    for _ in range(3):
        await _everywhere(gateway, caller, "invalid_api_key")


async def test_a_tenants_policy_reaches_the_router(gateway: Gateway) -> None:
    tenant = await gateway.tenant()

    async def told(client: httpx.AsyncClient) -> str | None:
        answer = await client.post("/v1/infer", json=callers.INFER)
        seen = await gateway.seen(answer.headers["x-request-id"])
        assert seen is not None
        return dict(seen["headers"]).get("x-routing-policy")

    async with gateway.client(tenant) as client:
        assert await told(client) is None
        await callers.change_tenant(gateway, tenant, routing_policy='{"deniedProviders": ["acme"]}')

        async def changed() -> bool:
            expected = f'{{"tenantId":"{tenant.id}","deniedProviders":["acme"]}}'
            return await told(client) == expected

        for _ in range(6):
            await until(changed)


async def test_without_announcements_a_revocation_holds_when_copies_are_used_up() -> None:
    with running() as gateway:
        tenant = await gateway.tenant()
        caller = Caller(tenant=tenant, headers=tenant.headers, key_id=tenant.key_id)
        await _everywhere(gateway, caller, "200")
        # As when the connections that listen are cut: the change is made, and nobody says so.
        connection = await asyncpg.connect(gateway.dsn)
        try:
            await connection.execute("ALTER TABLE api_keys DISABLE TRIGGER api_keys_announce")
            await gateway.revoke(tenant)
        finally:
            await connection.close()
        await _everywhere(gateway, caller, "invalid_api_key")


async def test_while_postgres_is_away_the_known_go_on_and_the_unknown_are_not_called_wrong() -> None:
    with running(durable=True) as gateway:
        known, unknown = await gateway.tenant(), await gateway.tenant()
        session = await callers.session(gateway, Caller(tenant=known, headers=known.headers))
        callers_known = [Caller(tenant=known, headers=known.headers), session]
        for caller in callers_known:
            await _everywhere(gateway, caller, "200")
        gateway.kill("postgres")
        for caller in callers_known:
            await _everywhere(gateway, caller, "200")
        async with gateway.client(unknown) as client:
            assert await code(client) == "identity_unavailable"
        async with gateway.client() as client:
            assert await code(client) == "missing_credentials"
        gateway.start_postgres()
        await _everywhere(gateway, Caller(tenant=unknown, headers=unknown.headers), "200")
        await _postgres_hangs(gateway, callers_known)


async def _postgres_hangs(gateway: Gateway, known: list[Caller]) -> None:
    """A server that is there and says nothing, which is worse than one that is gone."""
    new = await gateway.tenant()
    server = psutil.Process(gateway.children["postgres"].pid)
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        for caller in known:
            await _everywhere(gateway, caller, "200")
        async with gateway.client(new) as client:
            assert await code(client) == "identity_unavailable"
    finally:
        for process in processes:
            process.resume()
    await _everywhere(gateway, Caller(tenant=new, headers=new.headers), "200")
