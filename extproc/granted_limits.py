"""Which limits does a Grant put on a request? Selected once for each Grant, path and model, and remembered.

What is remembered is handed out again and again as the same object: others keep what they make of it beside it.
"""

from functools import lru_cache

from authz import grant as grants
from authz.grant import Grant
from quota.applied import AppliedLimits, Target, applied
from quota.limit import Dimension, Limit

_GRANTS = 10_000
_SELECTIONS = 10_000


def carried(grant: Grant) -> tuple[tuple[Dimension, tuple[Limit, ...]], ...]:
    """Who carries which limits, from the widest to the narrowest."""
    return (
        (Dimension.ORGANIZATION, grant.organization_limits),
        (Dimension.TENANT, grant.limits),
        (Dimension.PRINCIPAL, grant.principal_limits),
    )


def limits_of(grant_text: str, path: str, model: str) -> AppliedLimits:
    """The limits of a request, of a Grant in its text. The same object for the same three, as long as it is remembered.

    Models are the callers' own text. Where no limit asks for the model, they share what is remembered.
    """
    return _select(grant_text, path, model if _asks_for_model(grant_text) else "")


@lru_cache(maxsize=_GRANTS)
def _asks_for_model(grant_text: str) -> bool:
    limits = (limit for _, of_one in carried(grants.decode(grant_text)) for limit in of_one)
    return any(limit.model or Dimension.MODEL in limit.per for limit in limits)


@lru_cache(maxsize=_SELECTIONS)
def _select(grant_text: str, path: str, model: str) -> AppliedLimits:
    grant = grants.decode(grant_text)
    target = Target(
        organization_id=grant.organization_id,
        tenant_id=grant.tenant_id,
        principal_id=grant.principal_id,
        route=path,
        model=model,
        time_zone=grant.time_zone,
    )
    return applied(carried(grant), target)
