"""Which limits hold for a request, and on which counter is each counted? A pure selection from all that are set."""

from collections.abc import Iterable
from dataclasses import dataclass

from quota.limit import OWNERS, Dimension, Limit
from quota.model_pattern import matches, particularity

SHARED_TIME_ZONE = "UTC"
_ORDER = tuple(Dimension)
_OF_ONE_TENANT = frozenset({Dimension.TENANT, Dimension.PRINCIPAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a request is counted by. `route` is its path, `time_zone` an IANA name, the tenant's."""

    organization_id: str
    tenant_id: str
    principal_id: str
    route: str
    model: str
    time_zone: str = "UTC"
    plan: str = ""
    """Where it is not its tenant's own; nothing is counted by it."""

    def value(self, dimension: Dimension) -> str:
        """What the dimension is for this request."""
        match dimension:
            case Dimension.ORGANIZATION:
                return self.organization_id
            case Dimension.TENANT:
                return self.tenant_id
            case Dimension.PRINCIPAL:
                return self.principal_id
            case Dimension.ROUTE:
                return self.route
            case Dimension.MODEL:
                return self.model


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A limit as it holds for a request. `subject` is whose counter it is: `tenant:ten_1`, `tenant:ten_1,model:m`.

    A counter that all tenants of an organization share is `shared`.
    """

    limit: Limit
    subject: str
    shared: bool = False

    @property
    def counter(self) -> str:
        """The name of its counter; unique within an organization."""
        return f"{self.subject}/{self.limit.name}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class AppliedLimits:
    """All limits of a request, in the order in which they are told. Equal only to itself: it is a cache's key."""

    limits: tuple[AppliedLimit, ...]
    time_zone: str = "UTC"

    def zone_of(self, applied_limit: AppliedLimit) -> str:
        """Whose days it counts: the tenant's, or UTC's where tenants with zones of their own share the counter."""
        return SHARED_TIME_ZONE if applied_limit.shared else self.time_zone


def applied(carried: Iterable[tuple[Dimension, Iterable[Limit]]], target: Target) -> AppliedLimits:
    """The limits that hold for the target, of those that each owner (organization, tenant, principal) carries.

    Where two of one owner differ only in what they are for, the one that says more is taken: more of the model's name,
    then the route.
    Where two owners' limits share a counter, it is kept under the tighter one, and counted once.
    """
    found: dict[tuple[Dimension, tuple[Dimension, ...], str], Limit] = {}
    for carrier, limits in carried:
        for limit in limits:
            if not _holds(limit, target):
                continue
            key = (carrier, counted_per(limit, carrier), limit.name)
            known = found.get(key)
            if known is None or _particular(limit) > _particular(known):
                found[key] = limit
    chosen: dict[str, AppliedLimit] = {}
    for (_, per, _), limit in found.items():
        each = AppliedLimit(limit, _subject(limit, per, target), shared=not _OF_ONE_TENANT & set(per))
        known_of_it = chosen.get(each.counter)
        if known_of_it is None or _tightness(limit) > _tightness(known_of_it.limit):
            chosen[each.counter] = each
    return AppliedLimits(tuple(chosen.values()), target.time_zone)


def counted_per(limit: Limit, carrier: Dimension) -> tuple[Dimension, ...]:
    """What the limit is counted apart for when `carrier` carries it, from the widest to the narrowest."""
    per = set(limit.per)
    if not per & OWNERS:
        per.add(carrier)
    return tuple(dimension for dimension in _ORDER if dimension in per)


def _holds(limit: Limit, target: Target) -> bool:
    return limit.route in ("", target.route) and (not limit.model or matches(limit.model, target.model))


def _tightness(limit: Limit) -> tuple[bool, int]:
    return limit.enforced, -limit.ceiling


def _particular(limit: Limit) -> tuple[bool, tuple[int, bool], bool]:
    return bool(limit.model), particularity(limit.model), bool(limit.route)


def _subject(limit: Limit, per: tuple[Dimension, ...], target: Target) -> str:
    # The model comes last, for it is the caller's own text and may hold anything.
    parts = [f"{dimension}:{target.value(dimension)}" for dimension in per]
    if limit.route and Dimension.ROUTE not in per:
        parts.insert(1, f"on {limit.route}")
    if limit.model and Dimension.MODEL not in per:
        parts.insert(1, f"of {limit.model}")
    return ",".join(parts)
