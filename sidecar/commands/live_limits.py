"""How do limits stand at this moment, for a command to show? Read from the Redis that the workers count in."""

import os
from collections.abc import Sequence
from contextlib import aclosing

from quota.applied import Target
from quota.overview import CarriedLimit, counted, matched
from quota.redis import RedisReservations
from quota.reservation import QuotaOutage, Standing
from sidecar.commands.admin_settings import redis_url
from sidecar.redis_client import cluster_pipe, server_pipe

_WAIT_SECONDS = 2.0
_CLUSTER = "GATEWAY_REDIS_CLUSTER"
_YES = frozenset({"1", "true", "yes", "on"})

Numbered = Sequence[tuple[CarriedLimit, Standing | None]]


async def numbered(found: Sequence[CarriedLimit], target: Target) -> tuple[Numbered, str]:
    """Each limit beside how it stands; without numbers, and with the reason, when Redis cannot be asked."""
    limits = counted(found, target.time_zone)
    without = [(each, None) for each in found]
    if not limits.limits:
        return without, ""
    url = redis_url()
    if url is None:
        return without, "REDIS_URL is not set"
    connect = cluster_pipe if os.environ.get(_CLUSTER, "").lower() in _YES else server_pipe
    try:
        async with aclosing(connect(url, deadline=_WAIT_SECONDS)) as pipe:
            standings = await RedisReservations(pipe).standings(target.organization_id, limits)
    except (QuotaOutage, ValueError) as error:
        return without, str(error)
    return matched(found, limits, standings), ""
