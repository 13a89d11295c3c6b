"""How is a request charged that no counter holds? Afterwards, to the counters that its limits have now, once.

So it is with what was admitted while Redis was away, and with what a flush of Redis made it forget.
"""

import asyncio
from collections.abc import Sequence

from extproc.record import UsageRecord
from quota.charges import NOTHING
from quota.drift import slice_at
from quota.redis_repair import Charge, RedisRepair
from store import counters
from store.consumption import written_as
from store.counters import Counters
from store.database import Pool


class LateCharges:
    """Charges what the ledger has and no counter ever held."""

    def __init__(self, repair: RedisRepair, pool: Pool) -> None:
        self._repair = repair
        self._pool = pool

    async def charge(self, records: Sequence[UsageRecord]) -> int:
        """Charge those of the records that have to be; returns how many were. They are in the ledger already.

        Raises `QuotaOutage` or `DatabaseOutage`, after which all may be charged again.
        """
        owed = [record for record in records if record.reserved_ms is None and record.ending.charges != NOTHING]
        if not owed:
            return 0
        events = [(each.admission.request_id, each.settlement) for each in owed if each.settlement is not None]
        written = await written_as(self._pool, events)
        owed = [record for record in owed if record.admission.request_id in written]
        known = await counters.load(self._pool, sorted({record.admission.tenant_id for record in owed}))
        return sum(await asyncio.gather(*(self._charge(known, record) for record in owed)))

    async def _charge(self, known: Counters, record: UsageRecord) -> bool:
        admission, charged = record.admission, record.ending.charges
        found = known.of_request(admission)
        charges = [
            Charge(counter=each.name, slice=slice_at(each.period, admission.admitted_ms), amount=amount)
            for each in found
            if (amount := charged.of(each.limit.unit))
        ]
        if not charges:
            return False
        return await self._repair.charge(admission.organization_id, admission.request_id, charges)
