"""A stream that runs when its owner is revoked: it ends where the settings say so, and runs on where they do not."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from authz.principal import Metering
from store import organizations, tenants
from store.database import opened
from tests.e2e import callers
from tests.e2e.callers import Caller
from tests.e2e.running import Running, router_end, running
from tests.support.gateway import TRAIL, Gateway, Tenant
from tests.support.gateway import running as running_gateway
from tests.support.oidc import OidcIssuer, running_issuer

METERING = pytest.mark.parametrize("metering", list(Metering))


@pytest.fixture(scope="module")
def trusted() -> Iterator[OidcIssuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def strict(trusted: OidcIssuer) -> Iterator[Gateway]:
    """A gateway that ends the streams of those who are revoked."""
    env = {"GATEWAY_END_REVOKED_STREAMS": "true", "GATEWAY_JWT_ISSUERS": trusted.setting()}
    with running_gateway(env=env) as gateway:
        yield gateway


@asynccontextmanager
async def _of(gateway: Gateway, caller: Caller) -> AsyncIterator[Running]:
    async with caller.client(gateway) as client, running(client) as request:
        await request.seen(2)
        yield request


async def _revoked(gateway: Gateway, tenant: Tenant, request: Running, metering: Metering) -> None:
    await request.ended()
    if metering is Metering.INLINE:
        assert (request.broken, request.last_error) == (False, "credential_revoked")
    else:
        assert request.broken
    assert await router_end(gateway, request.request_id) == "client_closed"
    record = await gateway.row(request.request_id)
    assert (record.ending.state, record.ending.cause) == ("cancelled", "revoked")
    assert record.admission.tenant_id == tenant.id


@METERING
async def test_a_revoked_keys_streams_end_and_no_others(strict: Gateway, metering: Metering) -> None:
    tenant = await strict.tenant(metering=metering)
    other = await callers.key(strict, tenant)
    async with _of(strict, other) as untouched, strict.client(tenant) as client, running(client) as request:
        await request.seen(2)
        await strict.revoke(tenant)
        await _revoked(strict, tenant, request, metering)
        await untouched.seen(untouched.events + 3)


@pytest.mark.parametrize("kind", ["key", "workload", "subject", "session"])
@pytest.mark.parametrize("level", ["organization", "tenant", "itself"])
async def test_whoever_is_suspended_at_any_level_ends(
    strict: Gateway, trusted: OidcIssuer, kind: str, level: str
) -> None:
    tenant = await strict.tenant()
    caller = await _caller(strict, trusted, tenant, kind)
    async with _of(strict, caller) as request:
        await caller.suspend(strict, level)
        await _revoked(strict, tenant, request, Metering.NATIVE)


async def _caller(gateway: Gateway, issuer: OidcIssuer, tenant: Tenant, kind: str) -> Caller:
    match kind:
        case "workload":
            return await callers.workload(gateway, tenant)
        case "subject":
            return await callers.subject(issuer, tenant)
        case "session":
            return await callers.session(gateway, await callers.key(gateway, tenant))
        case _:
            return await callers.key(gateway, tenant)


@pytest.mark.parametrize("level", ["organization", "tenant"])
async def test_whoever_is_deleted_ends(strict: Gateway, level: str) -> None:
    tenant = await strict.tenant()
    caller = await callers.key(strict, tenant)
    async with _of(strict, caller) as request:
        now = datetime.now(UTC)
        async with opened(strict.dsn) as pool:
            if level == "tenant":
                await tenants.delete(pool, tenant.id, now=now, trail=TRAIL)
            else:
                owner = (await tenants.find_tenant(pool, tenant.id)).organization_id
                await organizations.delete(pool, owner, now=now, trail=TRAIL, with_tenants=True)
        await _revoked(strict, tenant, request, Metering.NATIVE)


async def test_a_key_that_expires_ends_too(strict: Gateway) -> None:
    tenant = await strict.tenant()
    caller = await callers.key(strict, tenant, expires_at=datetime.now(UTC) + timedelta(seconds=3))
    async with _of(strict, caller) as request:
        await _revoked(strict, tenant, request, Metering.NATIVE)


async def test_a_change_that_takes_nothing_away_ends_nothing(strict: Gateway) -> None:
    tenant = await strict.tenant()
    caller = await callers.key(strict, tenant)
    async with _of(strict, caller) as request:
        await callers.change_key(strict, caller, name="another name")
        await callers.change_tenant(strict, tenant, networks=("0.0.0.0/0",))
        await request.seen(request.events + 60)


async def test_by_default_what_runs_runs_on(gateway: Gateway) -> None:
    tenant = await gateway.tenant()
    async with gateway.client(tenant) as client, running(client) as request:
        await request.seen(2)
        await gateway.revoke(tenant)
        await callers.everywhere(client, "invalid_api_key")
        await request.seen(request.events + 60)
        assert not request.task.done()
