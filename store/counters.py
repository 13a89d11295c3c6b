"""On which counters is a request of the ledger counted? By the limits that its tenant and principal have now."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

from extproc.record import Admission
from quota.applied import SHARED_TIME_ZONE, Target, applied
from quota.drift import Period, Watched, period_of, watched
from quota.limit import Window
from quota.overview import counted, overview
from store.carried_limits import CarriedLimits, carried_limits
from store.consumption import Owner, Use, owners
from store.database import Pool


class Counters:
    """Knows the counters of some tenants' requests."""

    def __init__(self, tenants: Iterable[Owner], carried: CarriedLimits) -> None:
        self.tenants = {tenant.id: tenant for tenant in tenants}
        self._carried = carried
        self._of = cache(self._find)
        self.periods = cache(self._periods)

    def of_request(self, admission: Admission) -> Sequence[Watched]:
        """The counters of a request; none for a tenant that is not known."""
        tenant = self.tenants.get(admission.tenant_id)
        if tenant is None:
            return ()
        target = tenant.target(admission.principal_id, route=admission.path, model=admission.model)
        return self._of(replace(target, plan=admission.plan))

    def of_use(self, use: Use) -> Sequence[Watched]:
        """The counters that hold what the ledger has summed up."""
        tenant = self.tenants.get(use.tenant_id)
        if tenant is None:
            return ()
        return self._of(replace(tenant.target(use.principal_id, route=use.route, model=use.model), plan=use.plan))

    def unused(self, tenant: Owner) -> set[Watched]:
        """The counters that a tenant has whether or not it was used: those that no principal, route or model names."""
        found: set[Watched] = set()
        for principal_id in ("", *tenant.principals):
            target = tenant.target(principal_id)
            limits = counted(overview(self._carried.of(target), target), tenant.time_zone)
            found.update(watched(tenant.organization_id, limits))
        return found

    def _periods(self, tenant: Owner) -> frozenset[Period]:
        """The periods of all windows that may hold for the tenant's requests."""
        targets = [tenant.target(principal_id) for principal_id in ("", *tenant.principals)]
        # A JWT may name any plan.
        targets += [replace(tenant.target(), plan=plan) for plan in self._carried.plans]
        limits = {limit for target in targets for _, carried in self._carried.of(target) for limit in carried}
        # What all tenants of an organization share goes by a time zone of its own.
        zones = (tenant.time_zone, SHARED_TIME_ZONE)
        windows = (limit for limit in limits if limit.window is not Window.LEASE)
        return frozenset(period_of(limit, zone) for limit in windows for zone in zones)

    def _find(self, target: Target) -> Sequence[Watched]:
        return watched(target.organization_id, applied(self._carried.of(target), target))


async def load(pool: Pool, tenant_ids: Sequence[str] | None = None) -> Counters:
    """Those of these tenants, or of all. Raises `DatabaseOutage`."""
    found = await owners(pool, tenant_ids)
    return Counters(found, await carried_limits(pool, [tenant.id for tenant in found]))
