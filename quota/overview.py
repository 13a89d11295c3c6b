"""Which limits can hold for somebody's requests, and on which counters? As far as it is said what the requests are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from quota.applied import SHARED_TIME_ZONE, AppliedLimit, AppliedLimits, Target, applied, counted_per
from quota.limit import Dimension, Limit
from quota.reservation import Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedLimit:
    """A limit that `carrier` carries, what it is counted apart for, and in whose time zone its days are.

    It has no counter while it is not said what is `missing`: a limit for each model is counted only for a model.
    """

    carrier: Dimension
    held: AppliedLimit
    per: tuple[Dimension, ...]
    missing: tuple[Dimension, ...]
    time_zone: str

    @property
    def limit(self) -> Limit:
        """The limit itself."""
        return self.held.limit


def overview(carried: Iterable[tuple[Dimension, Iterable[Limit]]], target: Target) -> tuple[CarriedLimit, ...]:
    """All limits that can hold for requests of the target, in the order of their carriers.

    What is empty in the target is not said. With a route and a model, these are the limits that hold for that request;
    without, also those that hold for one route or model only.
    """
    owners = [(carrier, tuple(limits)) for carrier, limits in carried]
    holding: dict[Target, frozenset[AppliedLimit]] = {}
    found: dict[str, CarriedLimit] = {}
    for carrier, limits in owners:
        for limit in limits:
            meant = replace(target, route=target.route or limit.route, model=target.model or limit.model)
            if meant not in holding:
                holding[meant] = frozenset(applied(owners, meant).limits)
            # None when it is for another route or model; elsewhere another may stand in its place.
            alone = applied([(carrier, (limit,))], meant).limits
            if alone and alone[0] in holding[meant]:
                found.setdefault(alone[0].counter, _carried(carrier, alone[0], target))
    return tuple(found.values())


def counted(found: Iterable[CarriedLimit], time_zone: str) -> AppliedLimits:
    """Those of the limits that have a counter, to ask how they stand."""
    return AppliedLimits(tuple(each.held for each in found if not each.missing), time_zone)


def matched(
    found: Iterable[CarriedLimit], limits: AppliedLimits, standings: Sequence[Standing]
) -> tuple[tuple[CarriedLimit, Standing | None], ...]:
    """Each limit beside how it stands, of the standings of `counted`; None where it has no counter."""
    stood: Mapping[str, Standing] = dict(zip((each.counter for each in limits.limits), standings, strict=True))
    return tuple((each, stood.get(each.held.counter)) for each in found)


def _carried(carrier: Dimension, held: AppliedLimit, target: Target) -> CarriedLimit:
    per = counted_per(held.limit, carrier)
    return CarriedLimit(
        carrier=carrier,
        held=held,
        per=per,
        missing=tuple(dimension for dimension in per if not _said(dimension, held.limit, target)),
        time_zone=SHARED_TIME_ZONE if held.shared else target.time_zone,
    )


def _said(dimension: Dimension, limit: Limit, target: Target) -> bool:
    match dimension:
        case Dimension.ROUTE:
            return bool(target.route or limit.route)
        case Dimension.MODEL:
            return bool(target.model or (limit.model and not limit.model.endswith("*")))
        case _:
            return bool(target.value(dimension))
