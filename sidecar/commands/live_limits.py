"""How do limits stand at this moment, for a command to show? Read from the Redis that the workers count in."""

from collections.abc import Sequence
from contextlib import aclosing

from quota.applied import Target
from quota.overview import CarriedLimit, counted, matched
from quota.redis import RedisReservations
from quota.reservation import QuotaOutage, Standing
from sidecar.commands import command_redis

_WAIT_SECONDS = 2.0

Numbered = Sequence[tuple[CarriedLimit, Standing | None]]


async def numbered(found: Sequence[CarriedLimit], target: Target) -> tuple[Numbered, str]:
    """Each limit beside how it stands; without numbers, and with the reason, when Redis cannot be asked."""
    limits = counted(found, target.time_zone)
    without = [(each, None) for each in found]
    if not limits.limits:
        return without, ""
    try:
        connected = command_redis.pipe(deadline=_WAIT_SECONDS)
        if connected is None:
            return without, command_redis.UNKNOWN
        async with aclosing(connected) as pipe:
            standings = await RedisReservations(pipe).standings(target.organization_id, limits)
    except (QuotaOutage, ValueError) as error:
        return without, str(error)
    return matched(found, limits, standings), ""
