"""When are idempotency keys deleted that have expired? Every hour, by the controller; they count for nothing before."""

import asyncio
from typing import NoReturn

from sidecar.logs import Logger
from store import idempotency
from store.database import DatabaseOutage, Pool

_EVERY_SECONDS = 3600.0


async def keep_deleting(pool: Pool, logger: Logger) -> NoReturn:
    """Delete them, until cancelled. What an outage leaves is deleted the next time."""
    while True:
        try:
            deleted = await idempotency.delete_expired(pool)
            logger.info("expired idempotency keys are deleted", action="idempotency_keys_deleted", keys=deleted)
        except DatabaseOutage as error:
            logger.warning("expired idempotency keys stay", action="idempotency_keys_kept", error=str(error))
        await asyncio.sleep(_EVERY_SECONDS)
