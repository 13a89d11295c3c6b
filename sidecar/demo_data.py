"""Who calls a gateway that was just started? The tenant `demo` of the organization `demo`, with a key that works."""

import contextlib
from datetime import UTC, datetime

from authz.api_key import ApiKey, generate, keyed_hash, parse
from store import api_keys, database
from store.database import Pool
from store.directory import PostgresDirectory
from store.field_error import FieldError
from store.tenants import Tenant, create_tenant, list_tenants

NAME = "demo"
PLAN = "pro"


async def ensure_demo(dsn: str, pepper: str, known_key: str | None) -> str:
    """Return a key of the demo tenant: the known one while it opens the door, else a new one.

    The organization and the tenant are made when they are missing. Raises `DatabaseOutage`.
    """
    async with database.opened(dsn, size=1) as pool:
        tenant = await _ensure_tenant(pool)
        known = parse(known_key) if known_key else None
        if known is not None and await _opens(pool, known, tenant, pepper.encode()):
            return known.text
        key = generate(NAME)
        new = api_keys.NewKey(key=key, tenant_id=tenant.id, name=NAME)
        await api_keys.create(pool, new, pepper=pepper.encode())
        return key.text


async def _ensure_tenant(pool: Pool) -> Tenant:
    with contextlib.suppress(FieldError):  # it is there
        return await create_tenant(pool, NAME, organization=NAME, plan=PLAN)
    return next(tenant for tenant in await list_tenants(pool) if (tenant.organization, tenant.name) == (NAME, NAME))


async def _opens(pool: Pool, key: ApiKey, tenant: Tenant, pepper: bytes) -> bool:
    record = await PostgresDirectory(pool).find_key(key.id)
    if record is None or record.tenant_id != tenant.id or record.hash != keyed_hash(key.text, pepper):
        return False
    expired = record.expires_at is not None and record.expires_at <= datetime.now(UTC)
    return record.revoked_at is None and not expired
