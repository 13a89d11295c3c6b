"""Organizations, tenants and keys with limits of their own, made in the database of a running gateway."""

from uuid import uuid4

from authz import api_key
from authz.principal import DEFAULT_PRIORITY, Metering
from quota.limit import Limit
from store import api_keys, organizations, plans, tenants
from store.api_keys import NewKey
from store.database import Pool
from store.plans import Plan
from store.tenants import NewTenant
from tests.support.gateway import PEPPER, TRAIL, Tenant

Limits = tuple[Limit, ...]


async def organization(pool: Pool, *limits: Limit) -> str:
    """The name of a new organization."""
    name = f"o{uuid4().hex[:16]}"
    await organizations.create(pool, name, limits=limits, trail=TRAIL)
    return name


async def plan(
    pool: Pool, *limits: Limit, priority: int = DEFAULT_PRIORITY, metering: Metering = Metering.NATIVE
) -> str:
    """The name of a new plan."""
    name = f"p{uuid4().hex[:16]}"
    await plans.put(pool, Plan(name=name, limits=limits, metering=metering, priority=priority), trail=TRAIL)
    return name


async def tenant(pool: Pool, *limits: Limit, on: str = "", of: str = "", time_zone: str = "UTC") -> Tenant:
    """A tenant with limits of its own, and a key: on this plan or one without limits, of this organization or a new."""
    name = f"t{uuid4().hex[:16]}"
    chosen = on or await plan(pool)
    new = NewTenant(name=name, organization=of or name, plan=chosen, limits=limits, time_zone=time_zone)
    made = await tenants.create(pool, new, trail=TRAIL)
    return await another_key(pool, Tenant(made.id, "", "", chosen))


async def another_key(pool: Pool, of: Tenant, *limits: Limit) -> Tenant:
    """The same tenant by another key, with limits of its own."""
    key = api_key.generate("test")
    new = NewKey(key=key, tenant_id=of.id, name=key.id, limits=limits)
    await api_keys.create(pool, new, pepper=PEPPER.encode(), trail=TRAIL)
    return Tenant(of.id, key.text, key.id, of.plan)
