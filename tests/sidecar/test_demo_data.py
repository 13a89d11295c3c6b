"""The demo tenant: there after the first start, with a key that works, and only one key while it does."""

from datetime import UTC, datetime

from authz.api_key import generate, keyed_hash, parse
from authz.principal import Handle, PrincipalKind
from sidecar.demo_data import ensure_demo
from sidecar.embedded.certificates import DEMO_WORKLOAD
from store import api_keys, tenants
from store.database import Pool
from store.directory import PostgresDirectory
from store.tenants import NewTenant
from tests.support.trail import trail

PEPPER = "p" * 32


async def test_the_first_start_makes_a_key_that_works(database: str, pool: Pool) -> None:
    key = parse(await ensure_demo(database, PEPPER, None))
    assert key is not None
    assert key.tag == "demo"
    found = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key.id))
    assert found is not None
    assert [secret.hash for secret in found.secrets] == [keyed_hash(key.text, PEPPER.encode())]
    assert found.tenant.plan == "pro"
    robot = await PostgresDirectory(pool).find(Handle(PrincipalKind.WORKLOAD, DEMO_WORKLOAD))
    assert robot is not None
    assert robot.tenant == found.tenant
    assert [(found.organization, found.name) for found in await tenants.list_tenants(pool)] == [("demo", "demo")]


async def test_the_next_start_keeps_the_key(database: str, pool: Pool) -> None:
    key = await ensure_demo(database, PEPPER, None)
    assert await ensure_demo(database, PEPPER, key) == key
    assert len(await api_keys.list_keys(pool)) == 1


async def test_a_key_that_does_not_work_is_replaced(database: str, pool: Pool) -> None:
    for useless in ("", "not a key", generate("demo").text):
        assert await ensure_demo(database, PEPPER, useless) != useless
    assert len(await tenants.list_tenants(pool)) == 1


async def test_a_revoked_key_is_replaced(database: str, pool: Pool) -> None:
    key = await ensure_demo(database, PEPPER, None)
    await api_keys.revoke(pool, key.split("_")[2], now=datetime.now(UTC), trail=trail(PEPPER))
    assert await ensure_demo(database, PEPPER, key) != key


async def test_an_expired_key_is_replaced(database: str, pool: Pool) -> None:
    key = await ensure_demo(database, PEPPER, None)
    await pool.execute("UPDATE api_keys SET expires_at = now()")
    assert await ensure_demo(database, PEPPER, key) != key


async def test_a_key_of_another_pepper_is_replaced(database: str) -> None:
    key = await ensure_demo(database, PEPPER, None)
    assert await ensure_demo(database, "q" * 32, key) != key


async def test_a_key_of_another_tenant_is_replaced(database: str, pool: Pool) -> None:
    new_tenant = NewTenant(name="other", organization="demo", plan="pro")
    other = await tenants.create(pool, new_tenant, trail=trail(PEPPER))
    key = generate("demo")
    new = api_keys.NewKey(key=key, tenant_id=other.id, name="n")
    await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=trail(PEPPER))
    assert await ensure_demo(database, PEPPER, key.text) != key.text
