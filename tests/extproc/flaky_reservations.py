"""Reservations in memory that are out when the test says so, and with them whoever settles."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from extproc.record import Admission, Ending
from extproc.settlement import Settler
from quota.applied import AppliedLimits
from quota.limit import Limit
from quota.memory import MemoryReservations
from quota.reservation import Claim, Exceeded, Known, Overdue, Progress, QuotaOutage, Reservation, Settlement, Standing
from tests.support.values import ORGANIZATION, Clock, held


@dataclass(slots=True)
class FlakyReservations:
    """`out`: nothing is asked. `deaf`: it is done, and the answer is lost. `held`: calls wait until it is set."""

    kept: MemoryReservations
    out: bool = False
    deaf: bool = False
    held: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)

    async def reserve(self, claim: Claim) -> Reservation | Exceeded:
        await self._begin("reserve")
        answer = await self.kept.reserve(claim)
        self._end()
        return answer

    async def settle(self, settlement: Settlement) -> bool:
        await self._begin("settle")
        answer = await self.kept.settle(settlement)
        self._end()
        return answer

    async def release(self, organization_id: str, request_id: str) -> bool:
        await self._begin("release")
        answer = await self.kept.release(organization_id, request_id)
        self._end()
        return answer

    async def renew(self, organization_id: str, request_id: str, *, lease_ms: int, progress: Progress) -> str | None:
        await self._begin("renew")
        return await self.kept.renew(organization_id, request_id, lease_ms=lease_ms, progress=progress)

    async def stop(self, organization_id: str, request_id: str, *, why: str) -> bool:
        await self._begin("stop")
        return await self.kept.stop(organization_id, request_id, why=why)

    async def find(self, organization_id: str, request_id: str) -> Known | None:
        await self._begin("find")
        return await self.kept.find(organization_id, request_id)

    async def open_of(self, organization_id: str, tenant_id: str, *, limit: int) -> list[Known]:
        await self._begin("open_of")
        return await self.kept.open_of(organization_id, tenant_id, limit=limit)

    async def progress(self, requests: Sequence[tuple[str, str]]) -> list[int | None]:
        await self._begin("progress")
        return await self.kept.progress(requests)

    async def overdue(self, *, limit: int) -> list[Overdue]:
        await self._begin("overdue")
        return await self.kept.overdue(limit=limit)

    async def standings(self, organization_id: str, limits: AppliedLimits) -> tuple[Standing, ...]:
        await self._begin("standings")
        return await self.kept.standings(organization_id, limits)

    async def _begin(self, name: str) -> None:
        self.asked.append(name)
        if self.held is not None:
            await self.held.wait()
        if self.out:
            raise QuotaOutage("out")

    def _end(self) -> None:
        if self.deaf:
            raise QuotaOutage("the answer is lost")


@dataclass(slots=True)
class Settling:
    """A Settler over reservations in memory, one clock for all, and what was observed."""

    clock: Clock = field(default_factory=Clock)
    observed: list[tuple[Admission, Ending]] = field(default_factory=list)
    flaky: FlakyReservations = field(init=False)
    settler: Settler = field(init=False)

    def __post_init__(self) -> None:
        self.flaky = FlakyReservations(MemoryReservations(self.clock.now_ms))
        self.settler = Settler(
            self.flaky,
            now=self.clock.now,
            now_ms=self.clock.now_ms,
            observe=lambda admission, ending: self.observed.append((admission, ending)),
        )

    async def used(self, *limits: Limit) -> tuple[int, ...]:
        """What is taken under limits that ten_a carries."""
        standings = await self.flaky.kept.standings(ORGANIZATION, held(*limits))
        return tuple(standing.used for standing in standings)
