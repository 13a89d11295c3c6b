"""Limits over Redis: exact for many clients at once, and all keys of an organization on one node of a cluster."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from quota.redis import SHARDS, RedisReservations, shard_of
from quota.reservation import Exceeded, Reservation, Reservations
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import reserving, used
from tests.support.values import claim, demand, settlement, sliding, slots, tokens_a_day

CEILING = 50


@pytest.mark.parametrize("limit", [sliding(CEILING, seconds=3600), slots(CEILING), tokens_a_day(CEILING)])
async def test_many_clients_at_once_are_admitted_up_to_the_ceiling_and_no_further(
    redis_server: OwnRedis, redis: Redis, limit: object
) -> None:
    async with Redis.from_url(redis_server.url) as other, reserving(redis) as one, reserving(other) as two:
        clients = (one, two)
        answers = await asyncio.gather(
            *(clients[number % 2].reserve(claim(f"r{number}", demand(limit))) for number in range(200))  # type: ignore[arg-type]
        )
    assert Counter(type(answer) for answer in answers) == {Reservation: CEILING, Exceeded: 200 - CEILING}


async def test_slots_that_come_and_go_at_once_are_never_too_many(redis_server: OwnRedis, redis: Redis) -> None:
    limit, running, most = slots(5), 0, 0

    async def request(reservations: Reservations, number: int) -> None:
        nonlocal running, most
        for attempt in range(3):
            name = f"r{number}.{attempt}"
            if isinstance(await reservations.reserve(claim(name, demand(limit))), Exceeded):
                continue
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            assert await reservations.settle(settlement(name))

    async with Redis.from_url(redis_server.url) as other, reserving(redis) as one, reserving(other) as two:
        await asyncio.gather(*(request((one, two)[number % 2], number) for number in range(60)))
        assert await used(one, limit) == 0
    assert 1 <= most <= 5


async def test_all_keys_of_an_organization_share_one_hash_tag(redis: Redis, reservations: RedisReservations) -> None:
    demands = (demand(sliding(9)), demand(tokens_a_day(900), 7), demand(slots(9)))
    for organization in ("org_a", "org_b", "org_{evil}", "org}x{"):
        await redis.flushdb()
        for name in ("open", "settled"):
            await reservations.reserve(claim(name, *demands, organization=organization))
        await reservations.settle(settlement("settled", organization_id=organization))
        keys = [_text(key) for key in await redis.keys()]
        assert len(keys) == 7, "two records, leases, three limits, events"
        # Redis Cluster, "hash tags": what is between the first { and the first } after it.
        assert {re.search(r"\{(.*?)\}", key).group(1) for key in keys} == {f"{shard_of(organization):02}"}  # type: ignore[union-attr]
        assert all(key.startswith("igw1:{") for key in keys)


async def test_every_key_expires_by_itself_but_the_events_and_leases(
    redis: Redis, reservations: RedisReservations
) -> None:
    await reservations.reserve(claim("open", demand(sliding(9)), demand(tokens_a_day(900), 7), demand(slots(9))))
    await reservations.settle(settlement("settled", admission=b"x"))
    lasting = {_text(key).rpartition(":")[2] for key in await redis.keys() if await redis.ttl(key) < 0}
    assert lasting == {"leases", "events"}


async def test_the_lease_of_a_record_that_is_gone_is_dropped(redis: Redis, reservations: RedisReservations) -> None:
    await reservations.reserve(claim("lost", lease_ms=0))
    await redis.delete(f"igw1:{{{shard_of('org_a'):02}}}:request:lost")
    assert await reservations.overdue(limit=10) == []
    assert await redis.zcard(f"igw1:{{{shard_of('org_a'):02}}}:leases") == 0


@pytest.fixture
async def reservations(redis: Redis) -> AsyncIterator[RedisReservations]:
    async with reserving(redis) as reservations:
        yield reservations


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
