"""A gateway in small: requests that are reserved and settled in a real Redis, and written to a real ledger."""

import asyncio
import contextlib
import random
from collections import Counter as Tally
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import uuid4

from redis.asyncio import Redis

import tests.wire.first_import  # noqa: F401 - before the writer, which serves the access log
from extproc import admission as admissions
from extproc import settlement as settlements
from extproc.record import Admission
from quota.applied import AppliedLimits, applied
from quota.charges import Charges
from quota.limit import Dimension, Limit, Unit, Window
from quota.pipe import RedisPipe
from quota.redis import RedisReservations, key_of, shard_of
from quota.redis_events import RedisSettledEvents
from quota.redis_repair import RedisRepair
from quota.reservation import Claim, Reservation, Settlement
from sidecar.comparison import Comparisons
from sidecar.late_charges import LateCharges
from sidecar.ledger_writer import LedgerWriter
from sidecar.logs import Logger
from sidecar.reconciler import Event, Reconciler, Repaired, Report
from store import counters
from store.carried_limits import carried_limits
from store.database import Pool
from store.limits import encode_limits
from tests.quota.worlds import piped
from tests.support.identity_rows import add_tenant
from tests.support.records import usage_record
from tests.support.values import Clock, sliding

PLENTY = 10**9
# Windows that no test outlives, in every shape.
HOURLY = sliding(PLENTY, seconds=3600, unit=Unit.TOKENS, name="tokens_per_hour")
BURST = Limit(
    name="requests_per_hour", unit=Unit.REQUESTS, window=Window.SLIDING, ceiling=10**6, seconds=3600, burst=5000
)
MONTHLY = Limit(name="cost_per_month", unit=Unit.COST, window=Window.CALENDAR_MONTH, ceiling=PLENTY)
DAILY = Limit(
    name="input_tokens_per_day",
    unit=Unit.INPUT_TOKENS,
    window=Window.CALENDAR_DAY,
    ceiling=PLENTY,
    per=(Dimension.TENANT, Dimension.MODEL),
)
OF_GPT = Limit(name="requests_per_day", unit=Unit.REQUESTS, window=Window.CALENDAR_DAY, ceiling=PLENTY, model="gpt-*")
OF_PRINCIPAL = Limit(
    name="output_tokens_per_hour",
    unit=Unit.OUTPUT_TOKENS,
    window=Window.SLIDING,
    seconds=3600,
    ceiling=PLENTY,
    per=(Dimension.PRINCIPAL,),
)
LIMITS = (HOURLY, BURST, DAILY, OF_GPT, OF_PRINCIPAL)
SHARD = shard_of("org_a")
RESERVED = Charges(requests=1, input_tokens=50, output_tokens=50, tokens=100, cost=1000)


@dataclass(slots=True)
class Lines:
    """A logger that keeps what it is told."""

    actions: list[str] = field(default_factory=list)

    def note(self, _: str, **fields: Any) -> None:
        self.actions.append(fields["action"])

    error = warning = info = note


@dataclass(slots=True)
class Gateway:
    """Everything that settles and counts."""

    redis: Redis
    pipe: RedisPipe
    pool: Pool
    clock: Clock = field(default_factory=Clock)
    seen: list[Event] = field(default_factory=list)
    lines: Lines = field(default_factory=Lines)
    known: dict[tuple[str, ...], AppliedLimits] = field(default_factory=dict)

    @property
    def reservations(self) -> RedisReservations:
        return RedisReservations(self.pipe)

    @property
    def repair(self) -> RedisRepair:
        return RedisRepair(self.pipe)

    def writer(self, name: str = "writer") -> LedgerWriter:
        events = RedisSettledEvents(self.pipe, consumer=name)
        late = LateCharges(self.repair, self.pool)
        return LedgerWriter(events, self.pool, late, cast("Logger", self.lines))

    def reconciler(self, writer: LedgerWriter | None = None) -> Reconciler:
        hands = {} if writer is None else {"in_hand": writer.in_hand}
        comparisons = Comparisons(self.repair, self.pool, ledger_seconds=20, **hands)
        return Reconciler(self.repair, comparisons, self.pool, observe=self.seen.append, now=self.clock.now)

    def repaired(self) -> list[Repaired]:
        """Every repair that was told of."""
        return [event for event in self.seen if isinstance(event, Repaired)]

    async def check(self, *, repair: bool = False) -> Report:
        return await self.reconciler().check(repair=repair)

    async def rebuild(self) -> None:
        """Make whole what is lost."""
        await self.reconciler().rebuild(await self.repair.lost())

    async def reserve(self, **changes: Any) -> Admission:
        """Admit a request; `changes` are fields of its admission."""
        one = await self.admission(**changes)
        claim = Claim(
            organization_id=one.organization_id,
            tenant_id=one.tenant_id,
            request_id=one.request_id,
            limits=await self.limits(one),
            amounts=RESERVED,
            least=RESERVED,
            admission=admissions.encode(one),
            lease_ms=600_000,
        )
        assert isinstance(await self.reservations.reserve(claim), Reservation)
        return one

    async def admission(self, **changes: Any) -> Admission:
        """A request that Redis has not heard of; `changes` are fields of its admission."""
        now_ms = await self.now_ms()
        whole = {"request_id": str(uuid4()), "principal_id": "key_k", "model": "gpt-5"}
        return usage_record(**{**whole, "received_ms": now_ms, "admitted_ms": now_ms, **changes}).admission

    async def limits(self, one: Admission) -> AppliedLimits:
        key = (one.tenant_id, one.principal_id, one.path, one.model, one.plan)
        if key not in self.known:
            self.known[key] = await self._limits(one)
        return self.known[key]

    async def _limits(self, one: Admission) -> AppliedLimits:
        known = await counters.load(self.pool, [one.tenant_id])
        of_tenant = known.tenants[one.tenant_id].target(one.principal_id, route=one.path, model=one.model)
        target = replace(of_tenant, plan=one.plan)
        return applied((await carried_limits(self.pool, [one.tenant_id])).of(target), target)

    async def settle(self, one: Admission, charged: Charges) -> bool:
        return await self.reservations.settle(settlement(one, charged))

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def rows(self) -> int:
        return int(await self.pool.fetchval("SELECT count(*) FROM inference_requests"))

    async def write_all(self, writer: LedgerWriter | None = None) -> None:
        """Let the ledger take all that was settled."""
        writer = writer or self.writer()
        events = RedisSettledEvents(self.pipe, consumer="x")
        async with asyncio.timeout(30):
            while await writer.step() or await events.backlog():
                pass

    async def fields(self, key: str) -> dict[str, int]:
        """The hash of a counter."""
        held: dict[bytes, bytes] = await self.pipe.call("HGETALL", key)
        return {name.decode(): int(value) for name, value in held.items()}

    async def hold(self) -> dict[str, tuple[int, int]]:
        """What is settled and what is reserved in each counter of a window; its sums are those of its slices."""
        found = {}
        async for key in self.redis.scan_iter(match=key_of(SHARD, "counter", "*")):
            fields = await self.fields(key.decode())
            total = sum(amount for name, amount in fields.items() if name.isdigit())
            reserved = sum(amount for name, amount in fields.items() if name[1:].isdigit() and name[0] == "r")
            assert (fields["sum"], fields["reserved"]) == (total, reserved)
            assert await self.redis.pttl(key) > 0
            found[key.decode().partition(":counter:")[2]] = (total - reserved, reserved)
        return found


async def expected(pool: Pool, settled: Sequence[tuple[Admission, Charges]]) -> dict[str, tuple[int, int]]:
    """What the counters are to hold after these, when nothing runs."""
    known = await counters.load(pool)
    sums: Tally[str] = Tally()
    for one, charged in settled:
        for each in known.of_request(one):
            sums[each.name] += charged.of(each.limit.unit)
    return {name: (amount, 0) for name, amount in sums.items()}


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a test repeats itself


def charges(dice: random.Random) -> Charges:
    used = [dice.randrange(1, 90) for _ in range(2)]
    return Charges(requests=1, input_tokens=used[0], output_tokens=used[1], tokens=sum(used), cost=dice.randrange(999))


def settlement(one: Admission, charged: Charges) -> Settlement:
    ending = usage_record(ended_ms=one.admitted_ms + 5, charges=charged).ending
    return settlements.settlement(one, ending)


async def furnish(pool: Pool) -> None:
    """Two tenants of one organization, each with limits, in time zones that have another day for hours."""
    for tenant_id, zone in (("ten_a", "Pacific/Kiritimati"), ("ten_b", "Pacific/Pago_Pago")):
        await add_tenant(pool, tenant_id, name=tenant_id.removeprefix("ten_"))
        await pool.execute(
            "UPDATE tenants SET time_zone = $2, limits = $3::jsonb WHERE id = $1",
            *(tenant_id, zone, encode_limits(LIMITS)),
        )
    await pool.execute("UPDATE plans SET limits = '[]'")
    await pool.execute("UPDATE organizations SET limits = $1::jsonb", encode_limits((MONTHLY,)))


@contextlib.asynccontextmanager
async def gateway(url: str, pool: Pool) -> AsyncIterator[Gateway]:
    """An empty Redis that is not whole, and an empty ledger."""
    async with Redis.from_url(url) as redis, piped(redis) as pipe:
        await redis.flushall()
        await furnish(pool)
        yield Gateway(redis, pipe, pool)
