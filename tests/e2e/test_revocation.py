"""How soon does a change of identity hold on every worker, and what holds while Postgres cannot be asked?"""

import asyncpg
import httpx
import pytest

from tests.e2e import callers
from tests.e2e.callers import Caller, code
from tests.support.gateway import Gateway, running, until

IN_A_ROW = 12  # calls on new connections reach both workers


async def _everywhere(gateway: Gateway, caller: Caller, expected: str) -> None:
    """Wait until the answer is the same again and again, whichever worker gives it."""

    async def holds() -> bool:
        for _ in range(IN_A_ROW):
            async with caller.client(gateway) as client:
                if await code(client) != expected:
                    return False
        return True

    await until(holds)


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
