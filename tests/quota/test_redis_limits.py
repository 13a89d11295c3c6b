"""Limits over Redis: which keys there are and for how long, what Redis lost, and clocks that are wrong."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from quota.limit import Limit, Mode, Unit, Window
from quota.pipe import Argument, RedisPipe
from quota.redis import SHARDS, RedisReservations, key_of, shard_of
from quota.reservation import Exceeded, QuotaOutage, Reservation
from quota.scripts import load
from tests.quota.worlds import make_whole, over, piped, reserving, used
from tests.support.values import NOON_MS, amounts, claim, held, progress, settlement, sliding, slots, tokens_a_day

LIMITS = held(sliding(9), tokens_a_day(900), slots(9))
TOO_LATE = 4


@pytest.fixture
async def reservations(redis: Redis) -> AsyncIterator[RedisReservations]:
    async with reserving(redis) as reservations:
        yield reservations


async def test_all_keys_of_an_organization_share_one_hash_tag(redis: Redis, reservations: RedisReservations) -> None:
    epochs = {key_of(shard, "epoch") for shard in range(SHARDS)}
    for organization in ("org_a", "org_b", "org_{evil}", "org}x{"):
        await redis.flushdb()
        await make_whole(redis)
        for name in ("open", "settled"):
            asks = claim(name, LIMITS, amounts(7), organization_id=organization, event=b"admitted")
            await reservations.reserve(asks)
        await reservations.settle(settlement("settled", organization_id=organization))
        keys = {_text(key) for key in await redis.keys()} - epochs
        assert len(keys) == 10, "two records, leases, three counters, events, log, live requests, tally"
        # Redis Cluster, "hash tags": what is between the first { and the first } after it.
        assert {re.search(r"\{(.*?)\}", key).group(1) for key in keys} == {f"{shard_of(organization):02}"}  # type: ignore[union-attr]
        assert all(key.startswith("igw1:{") for key in keys)


async def test_every_key_expires_by_itself_but_the_streams_and_epochs(
    redis: Redis, reservations: RedisReservations
) -> None:
    await reservations.reserve(claim("open", LIMITS, amounts(7), event=b"admitted"))
    await reservations.settle(settlement("settled", admission=b"x"))
    lasting = {_text(key).rpartition(":")[2] for key in await redis.keys() if await redis.ttl(key) < 0}
    assert lasting == {"events", "log", "epoch"}


async def test_a_counter_expires_when_its_window_has_passed_and_a_burst_when_it_has_drained(
    redis: Redis, reservations: RedisReservations
) -> None:
    burst = Limit(name="burst", unit=Unit.TOKENS, window=Window.SLIDING, ceiling=100, seconds=60, burst=100)
    limits = held(sliding(9), tokens_a_day(900), burst)
    answer = await reservations.reserve(claim("a", limits, amounts(7)))
    assert isinstance(answer, Reservation)
    await reservations.settle(settlement("a", amounts(1000)))
    await reservations.reserve(claim("b", held(msgspec.structs.replace(burst, mode=Mode.SHADOW)), amounts(1)))
    counters = [key_of(shard_of("org_a"), "counter", each.counter) for each in limits.limits]
    minute, day, drained = [await redis.pttl(key) for key in counters]
    assert 60_000 < minute <= 62_000
    assert abs(day - answer.standings[1].reset_ms - 60_000) < 5000
    assert 60_000 < drained <= 62_000  # a bucket is never fuller than full


async def test_the_lease_of_a_record_that_is_gone_is_dropped(redis: Redis, reservations: RedisReservations) -> None:
    await reservations.reserve(claim("lost", held(), lease_ms=0))
    await redis.delete(f"igw1:{{{shard_of('org_a'):02}}}:request:lost")
    assert await reservations.overdue(limit=10) == []
    assert await redis.zcard(f"igw1:{{{shard_of('org_a'):02}}}:leases") == 0


async def test_requests_that_are_gone_leave_the_list_of_their_tenant(
    redis: Redis, reservations: RedisReservations
) -> None:
    live = key_of(shard_of("org_a"), "live", "ten_a")
    for number in range(7):
        await reservations.reserve(claim(f"r{number}", held()))
        await redis.zadd(live, {f"r{number}": number})
    for expired in ("r6", "r4", "r3"):
        await redis.delete(key_of(shard_of("org_a"), "request", expired))
    # The ledger has it, and who said so died before it was taken from the list.
    await reservations.settle(settlement("r2"))
    await redis.hdel(key_of(shard_of("org_a"), "request", "r2"), "admission", "ending")
    for limit, found in ((2, ["r5", "r1"]), (9, ["r5", "r1", "r0"])):
        assert [each.request_id for each in await reservations.open_of("org_a", "ten_a", limit=limit)] == found
    assert await redis.zrange(live, 0, -1) == [b"r0", b"r1", b"r5"]


async def test_counters_that_are_not_whole_are_an_outage_until_somebody_says_they_are(
    redis: Redis, reservations: RedisReservations
) -> None:
    await reservations.reserve(claim("before", LIMITS))
    await redis.flushall()
    with pytest.raises(QuotaOutage, match="not whole"):
        await reservations.reserve(claim("a", LIMITS))
    with pytest.raises(QuotaOutage, match="not whole"):
        await reservations.standings("org_a", LIMITS)
    assert await redis.keys() == []
    # What runs can end all the same.
    assert await reservations.settle(settlement("before", admission=b"copy"))
    await make_whole(redis)
    assert isinstance(await reservations.reserve(claim("a", LIMITS)), Reservation)


@pytest.mark.parametrize("ahead_ms", [-40 * 86_400_000, -86_400_000, 86_400_000, 40 * 86_400_000])
async def test_a_worker_whose_clock_is_wrong_counts_by_the_clock_of_redis(redis: Redis, ahead_ms: int) -> None:
    windows = (Window.CALENDAR_HOUR, Window.CALENDAR_DAY, Window.CALENDAR_MONTH)
    limits = held(*(Limit(name=window, unit=Unit.TOKENS, window=window, ceiling=10) for window in windows))

    def now_ms() -> int:
        return NOON_MS + ahead_ms

    async with reserving(redis) as right, piped(redis) as pipe:
        wrong = RedisReservations(pipe, now_ms)
        assert [standing.used for standing in await wrong.standings("org_a", limits)] == [0, 0, 0]
        await right.reserve(claim("a", limits, amounts(4)))
        answer = await wrong.reserve(claim("b", limits, amounts(4)))
        assert [standing.used for standing in answer.standings] == [8, 8, 8]
        assert isinstance(await wrong.reserve(claim("c", limits, amounts(4))), Exceeded)


async def test_a_reservation_that_the_version_before_made_is_renewed_and_settled(
    redis: Redis, reservations: RedisReservations
) -> None:
    shard = shard_of("org_a")
    day, slot = (key_of(shard, "limit", "t", name) for name in ("tokens", "slots"))
    record = key_of(shard, "request", "old")
    holds = f'[["{day}","tokens",20000,400],["{slot}","concurrent_requests",-1,1]]'
    await redis.hset(
        record, mapping={"state": "open", "admission": "old", "holds": holds, "taken": "400 1", "at": 1234}
    )
    await redis.hset(day, mapping={"20000": 450, "sum": 450, "first": 20000})
    await redis.zadd(slot, {"old": NOON_MS * 2})
    assert await reservations.renew("org_a", "old", lease_ms=60_000, progress=progress(3)) == ""
    assert isinstance(await reservations.reserve(claim("old", LIMITS)), Reservation)
    assert await reservations.settle(settlement("old", amounts(100)))
    assert await redis.hmget(day, ["20000", "sum"]) == [b"150", b"150"]
    assert await redis.zcard(slot) == 0


async def test_a_window_that_moves_on_slice_by_slice_forgets_what_has_left_it(
    redis: Redis, reservations: RedisReservations
) -> None:
    limit = sliding(1000, seconds=1)
    shard = shard_of("org_a")
    server_ms = await _now_ms(redis)
    old = server_ms // limit.slice_ms - 50
    key = key_of(shard, "counter", held(limit).limits[0].counter)
    await redis.hset(key, mapping={f"{old}": 7, f"r{old}": 3, "sum": 7, "reserved": 3, "first": old, "last": old})
    assert await used(reservations, limit) == 7
    full = held(msgspec.structs.replace(limit, ceiling=6))
    while isinstance(await reservations.reserve(claim("refused", full)), Exceeded):
        assert await used(reservations, limit) in {0, 7}
    assert await reservations.release("org_a", "refused")
    while await used(reservations, limit):  # noqa: ASYNC110 - what is waited for is the clock of Redis
        await asyncio.sleep(0.002)
    answer = await reservations.reserve(claim("a", held(limit)))
    assert [(standing.used, standing.reserved) for standing in answer.standings] == [(1, 1)]
    assert not await redis.hexists(key, str(old))


@pytest.mark.parametrize("window", [Window.SLIDING, Window.CALENDAR_DAY])
async def test_a_redis_whose_clock_was_set_back_forgets_nothing(
    redis: Redis, reservations: RedisReservations, window: Window
) -> None:
    limit = Limit(name="limit", unit=Unit.TOKENS, window=window, ceiling=100, seconds=60)
    limits = held(limit)
    key = key_of(shard_of("org_a"), "counter", limits.limits[0].counter)
    now_ms = await _now_ms(redis)
    later = (now_ms // 86_400_000 + 1) * 86_400_000 if window is Window.CALENDAR_DAY else now_ms // limit.slice_ms + 30
    await redis.hset(key, mapping={f"{later}": 60, "sum": 60, "first": later, "last": later})
    assert isinstance(await reservations.reserve(claim("a", limits, amounts(41))), Exceeded)
    answer = await reservations.reserve(claim("b", limits, amounts(40)))
    assert [(standing.used, standing.reserved) for standing in answer.standings] == [(100, 40)]
    assert await reservations.settle(settlement("b", amounts(1)))
    assert await used(reservations, limit) == 61


async def _now_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize(("organization", "shard"), [("org_a", 6), ("org_b", 12), ("", 0), ("org_\N{SNOWMAN}", 7)])
def test_the_shard_of_an_organization_never_changes(organization: str, shard: int) -> None:
    # A running system holds keys under these numbers.
    assert shard_of(organization) == shard


def test_organizations_spread_over_all_shards() -> None:
    counted = Counter(shard_of(f"org_{number}") for number in range(SHARDS * 100))
    assert set(counted) == set(range(SHARDS))
    assert max(counted.values()) < 200


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key


@dataclass(slots=True)
class _Stuck:
    """A pipe whose commands stay in a connection until they are sent on."""

    pipe: RedisPipe
    held: list[tuple[Argument, ...]] = field(default_factory=list)

    @property
    def one_server(self) -> bool:
        return True

    async def call(self, *command: Argument) -> Any:
        self.held.append(command)
        raise QuotaOutage("no answer")

    async def aclose(self) -> None:
        await self.pipe.aclose()


async def test_a_reservation_that_redis_comes_to_too_late_takes_nothing(redis: Redis) -> None:
    await make_whole(redis)
    limits = held(sliding(9))
    async with piped(redis) as pipe, over(redis) as world:
        stuck = _Stuck(pipe)
        with pytest.raises(QuotaOutage):
            await RedisReservations(stuck).reserve(claim("a", limits))
        await world.pass_time(2001)
        [(_, _, *rest)] = stuck.held
        late = await pipe.call("EVAL", load("reserve").source, *rest)
        assert msgspec.msgpack.decode(late)[0] == TOO_LATE
        assert await used(world.reservations, limits.limits[0].limit) == 0


@pytest.mark.parametrize("off_ms", [-3_600_000, 3_600_000])
async def test_a_clock_that_is_off_is_no_reason_to_refuse(redis: Redis, off_ms: int) -> None:
    await make_whole(redis)
    async with piped(redis) as pipe:
        reservations = RedisReservations(pipe, now_ms=lambda: time.time_ns() // 1_000_000 + off_ms)
        for name in "ab":
            assert isinstance(await reservations.reserve(claim(name, LIMITS)), Reservation)
