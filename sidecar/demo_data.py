"""Who calls a gateway that was just started? The tenant `demo` of the organization `demo`, with a key that works."""

import contextlib
import platform
from datetime import UTC, datetime

from authz.api_key import ApiKey, generate, keyed_hash, parse
from authz.principal import Handle, PrincipalKind
from authz.proof import opens
from sidecar.embedded.certificates import DEMO_WORKLOAD
from store import api_keys, database, tenants, workloads
from store.audit import Actor, Trail
from store.database import Pool
from store.directory import PostgresDirectory
from store.field_error import FieldError
from store.tenants import NewTenant, Tenant
from store.workloads import NewWorkload

NAME = "demo"
PLAN = "pro"


async def ensure_demo(dsn: str, pepper: str, known_key: str | None) -> str:
    """Return a key of the demo tenant: the known one while it opens the door, else a new one.

    The organization, the tenant and the workload of the demo certificate are made when they are missing. Raises
    `DatabaseOutage`.
    """
    trail = Trail(Actor(name="up", source=platform.node()), pepper=pepper.encode())
    async with database.opened(dsn, size=1) as pool:
        tenant = await _ensure_tenant(pool, trail)
        await _ensure_workload(pool, tenant, trail)
        known = parse(known_key) if known_key else None
        if known is not None and await _opens(pool, known, tenant, pepper.encode()):
            return known.text
        key = generate(NAME)
        new = api_keys.NewKey(key=key, tenant_id=tenant.id, name=NAME)
        await api_keys.create(pool, new, pepper=pepper.encode(), trail=trail)
        return key.text


async def _ensure_tenant(pool: Pool, trail: Trail) -> Tenant:
    with contextlib.suppress(FieldError):  # it is there
        return await tenants.create(pool, NewTenant(name=NAME, organization=NAME, plan=PLAN), trail=trail)
    found = await tenants.list_tenants(pool)
    return next(tenant for tenant in found if (tenant.organization, tenant.name) == (NAME, NAME))


async def _ensure_workload(pool: Pool, tenant: Tenant, trail: Trail) -> None:
    with contextlib.suppress(FieldError):  # it is there
        await workloads.create(pool, NewWorkload(tenant_id=tenant.id, certificate_name=DEMO_WORKLOAD), trail=trail)


async def _opens(pool: Pool, key: ApiKey, tenant: Tenant, pepper: bytes) -> bool:
    principal = await PostgresDirectory(pool).find(Handle(PrincipalKind.API_KEY, key.id))
    return opens(principal, keyed_hash(key.text, pepper), now=datetime.now(UTC)) and (
        principal is not None and principal.tenant.id == tenant.id
    )
