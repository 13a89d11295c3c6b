"""Which limits do an organization, its tenants and their principals carry? All of some tenants, at one moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quota.applied import Target
from quota.limit import Dimension, Limit
from store.database import Pool, outages_named
from store.limits import decode_limits, effective_limits

_TENANTS = """
SELECT t.id, t.organization_id, t.limits, t.time_zone, p.limits AS plan_limits, o.limits AS organization_limits
FROM tenants t JOIN organizations o ON o.id = t.organization_id JOIN plans p ON p.name = t.plan
WHERE t.id = ANY ($1::text[])"""
# By the ids of their principals, see `store.directory`.
_PRINCIPALS = """
SELECT 'key_' || id AS id, limits FROM api_keys WHERE tenant_id = ANY ($1::text[]) AND limits <> '[]'
UNION ALL SELECT id, limits FROM workloads WHERE tenant_id = ANY ($1::text[]) AND limits <> '[]'"""
_PLANS = "SELECT name, limits FROM plans"

_Limits = Mapping[str, tuple[Limit, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedLimits:
    """The limits of each owner by its id. Those of a tenant are its plan's too, with its own in their place.

    `plans` and `own` are the two apart, for a request on another plan than its tenant's.
    """

    organizations: _Limits
    tenants: _Limits
    principals: _Limits
    plans: _Limits = field(default_factory=dict)
    own: _Limits = field(default_factory=dict)

    def of(self, target: Target) -> tuple[tuple[Dimension, tuple[Limit, ...]], ...]:
        """What the owners of a request carry, as `quota.applied.applied` takes it."""
        return (
            (Dimension.ORGANIZATION, self.organizations.get(target.organization_id, ())),
            (Dimension.TENANT, self._of_tenant(target)),
            (Dimension.PRINCIPAL, self.principals.get(target.principal_id, ())),
        )

    def _of_tenant(self, target: Target) -> tuple[Limit, ...]:
        if target.plan not in self.plans:
            return self.tenants.get(target.tenant_id, ())
        return effective_limits(self.plans[target.plan], self.own.get(target.tenant_id, ()))


async def carried_limits(pool: Pool, tenant_ids: Sequence[str]) -> CarriedLimits:
    """What holds now for the callers of these tenants. Raises `DatabaseOutage`."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            tenants = await connection.fetch(_TENANTS, list(tenant_ids))
            principals = await connection.fetch(_PRINCIPALS, list(tenant_ids))
            plans = await connection.fetch(_PLANS)
    return CarriedLimits(
        organizations={row["organization_id"]: decode_limits(row["organization_limits"]) for row in tenants},
        tenants={
            row["id"]: effective_limits(decode_limits(row["plan_limits"]), decode_limits(row["limits"]))
            for row in tenants
        },
        principals={row["id"]: decode_limits(row["limits"]) for row in principals},
        plans={row["name"]: decode_limits(row["limits"]) for row in plans},
        own={row["id"]: decode_limits(row["limits"]) for row in tenants},
    )
