"""Whose limits does a person mean by `plan:pro`, `tenant:acme/search` or `key:7Kq2mWZp4TsB`? Found, and changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from authz.api_key import parse
from quota.applied import Target
from quota.limit import Dimension, Limit
from quota.overview import CarriedLimit
from store import api_keys, organizations, plans, tenants, workloads
from store.api_keys import KeyChanges
from store.audit import Trail
from store.database import Pool
from store.field_error import FieldError
from store.limits import effective_limits, identity
from store.organizations import OrganizationChanges
from store.permissions import PermissionChanges
from store.plans import PlanChanges
from store.tenants import Tenant, TenantChanges

FIELD = "TARGET"
Named = Annotated[
    str,
    typer.Argument(
        metavar=FIELD, help="plan:NAME, organization:NAME, tenant:ORG/NAME, key:ID or workload:ID; names or ids."
    ),
]


class Kind(StrEnum):
    """Who can carry limits."""

    PLAN = "plan"
    ORGANIZATION = "organization"
    TENANT = "tenant"
    KEY = "key"
    WORKLOAD = "workload"


_CARRIERS: Mapping[Kind, Dimension] = {
    Kind.PLAN: Dimension.TENANT,
    Kind.ORGANIZATION: Dimension.ORGANIZATION,
    Kind.TENANT: Dimension.TENANT,
    Kind.KEY: Dimension.PRINCIPAL,
    Kind.WORKLOAD: Dimension.PRINCIPAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where limits come from: `origin` is `plan pro`, or `key 7Kq2mWZp4TsB`."""

    origin: str
    carrier: Dimension
    limits: tuple[Limit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who was meant. `own` are its own limits; `sources` give all that hold for it, the inherited ones first.

    `target` says whose counters are its; nobody's of a plan.
    """

    kind: Kind
    id: str
    name: str
    own: tuple[Limit, ...]
    sources: tuple[Source, ...]
    target: Target

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return f"{self.kind} {self.name}"

    @property
    def carrier(self) -> Dimension:
        """As whom it carries its own limits."""
        return _CARRIERS[self.kind]

    @property
    def carried(self) -> tuple[tuple[Dimension, tuple[Limit, ...]], ...]:
        """All that hold for it, as `quota.applied.applied` takes them."""
        return tuple((source.carrier, source.limits) for source in self.sources)

    def origin(self, found: CarriedLimit) -> str:
        """Where a limit comes from."""
        known = (
            source.origin
            for source in reversed(self.sources)
            if source.carrier is found.carrier and found.limit in source.limits
        )
        return next(known)


async def find(pool: Pool, text: str) -> Owner:
    """Who is meant, with what holds for it; raises `FieldError` when nobody is."""
    kind, colon, name = text.partition(":")
    if not colon or not name or kind not in tuple(Kind):
        raise FieldError(
            FIELD, f"{text[:80]!r} is not like plan:pro, organization:acme, tenant:acme/search, key:ID or workload:ID"
        )
    return await _READERS[Kind(kind)](pool, name)


async def save(pool: Pool, owner: Owner, limits: tuple[Limit, ...], *, trail: Trail) -> None:
    """Have these be all of its own limits; raises `FieldError` when they cannot be."""
    match owner.kind:
        case Kind.PLAN:
            await plans.update(pool, owner.id, PlanChanges(limits=limits), trail=trail)
        case Kind.ORGANIZATION:
            await organizations.update(pool, owner.id, OrganizationChanges(limits=limits), trail=trail)
        case Kind.TENANT:
            await tenants.update(pool, owner.id, TenantChanges(limits=limits), trail=trail)
        case Kind.KEY:
            await api_keys.update(pool, owner.id, KeyChanges(limits=limits), trail=trail)
        case Kind.WORKLOAD:
            await workloads.update(pool, owner.id, PermissionChanges(limits=limits), trail=trail)


def replaced(limits: Iterable[Limit], given: Iterable[Limit], carrier: Dimension) -> tuple[Limit, ...]:
    """The limits with the given ones in place of those that count the same, each in its place, or behind them."""
    fresh = {identity(limit, carrier): limit for limit in given}
    kept = [fresh.pop(identity(limit, carrier), limit) for limit in limits]
    return (*kept, *fresh.values())


async def find_tenant(pool: Pool, name: str) -> Tenant:
    """The tenant of an id, a name, or an organization's and its name; raises `FieldError` when there is none."""
    if "/" in name:
        for each in await tenants.list_tenants(pool):
            if f"{each.organization}/{each.name}" == name:
                return each
    return await tenants.find_tenant(pool, name)


async def _plan(pool: Pool, name: str) -> Owner:
    plan = await plans.find_plan(pool, name)
    source = Source(origin=f"plan {plan.name}", carrier=Dimension.TENANT, limits=plan.limits)
    return Owner(kind=Kind.PLAN, id=plan.name, name=plan.name, own=plan.limits, sources=(source,), target=_target())


async def _organization(pool: Pool, name: str) -> Owner:
    found = await organizations.find_organization(pool, name)
    source = Source(origin=f"organization {found.name}", carrier=Dimension.ORGANIZATION, limits=found.limits)
    return Owner(
        kind=Kind.ORGANIZATION,
        id=found.id,
        name=found.name,
        own=found.limits,
        sources=(source,),
        target=_target(organization_id=found.id),
    )


async def _tenant(pool: Pool, name: str) -> Owner:
    tenant = await find_tenant(pool, name)
    return Owner(
        kind=Kind.TENANT,
        id=tenant.id,
        name=f"{tenant.organization}/{tenant.name}",
        own=tenant.limits,
        sources=await _inherited(pool, tenant),
        target=_target_of(tenant),
    )


async def _key(pool: Pool, name: str) -> Owner:
    whole = parse(name)
    key = await api_keys.find(pool, name if whole is None else whole.id)
    tenant = await tenants.find_tenant(pool, key.tenant_id, deleted=True)
    own = Source(origin=f"key {key.id}", carrier=Dimension.PRINCIPAL, limits=key.limits)
    return Owner(
        kind=Kind.KEY,
        id=key.id,
        name=key.id,
        own=key.limits,
        sources=(*await _inherited(pool, tenant), own),
        target=_target_of(tenant, f"key_{key.id}"),
    )


async def _workload(pool: Pool, name: str) -> Owner:
    workload = await workloads.find(pool, name)
    tenant = await tenants.find_tenant(pool, workload.tenant_id)
    own = Source(origin=f"workload {workload.id}", carrier=Dimension.PRINCIPAL, limits=workload.limits)
    return Owner(
        kind=Kind.WORKLOAD,
        id=workload.id,
        name=workload.id,
        own=workload.limits,
        sources=(*await _inherited(pool, tenant), own),
        target=_target_of(tenant, workload.id),
    )


_READERS = {
    Kind.PLAN: _plan,
    Kind.ORGANIZATION: _organization,
    Kind.TENANT: _tenant,
    Kind.KEY: _key,
    Kind.WORKLOAD: _workload,
}


async def _inherited(pool: Pool, tenant: Tenant) -> tuple[Source, ...]:
    """What holds for all callers of a tenant. What its own limits stand in place of is not among its plan's."""
    organization = await organizations.find_organization(pool, tenant.organization_id)
    plan = await plans.find_plan(pool, tenant.plan)
    effective = effective_limits(plan.limits, tenant.limits)
    kept = tuple(limit for limit in effective if limit not in tenant.limits)
    return (
        Source(origin=f"organization {organization.name}", carrier=Dimension.ORGANIZATION, limits=organization.limits),
        Source(origin=f"plan {plan.name}", carrier=Dimension.TENANT, limits=kept),
        Source(origin=f"tenant {tenant.name}", carrier=Dimension.TENANT, limits=tenant.limits),
    )


def _target_of(tenant: Tenant, principal_id: str = "") -> Target:
    return Target(
        organization_id=tenant.organization_id,
        tenant_id=tenant.id,
        principal_id=principal_id,
        route="",
        model="",
        time_zone=tenant.time_zone,
    )


def _target(organization_id: str = "") -> Target:
    return Target(organization_id=organization_id, tenant_id="", principal_id="", route="", model="")
