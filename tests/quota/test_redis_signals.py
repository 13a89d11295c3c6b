"""Signals between processes, over a real Redis."""

import contextlib
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from quota.estimate import BOUNDS, FEWEST_LESSONS, MODELS, Delta, Estimate, bucket_of
from quota.pipe import RedisPipe
from quota.redis_signals import MOST_LESSONS, SHED_HOLD_MS, RedisSignals
from quota.reservation import QuotaOutage
from tests.quota.own_redis import OwnRedis

# The machine is busy: what is shown is outcome, not speed.
PATIENT_SECONDS = 10.0


@contextlib.asynccontextmanager
async def signalling(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> AsyncIterator[RedisSignals]:
    async with contextlib.aclosing(RedisPipe(redis.connection_pool.make_connection, deadline=deadline)) as pipe:
        yield RedisSignals(pipe)


@pytest.fixture
async def signals(redis: Redis) -> AsyncIterator[RedisSignals]:
    async with signalling(redis) as found:
        yield found


def delta(lessons: int, *, millibytes: int = 4000, answers: dict[int, int] | None = None) -> Delta:
    """So many requests of 1,000 bytes, and answers of so many tokens."""
    counted = {bucket_of(output): count for output, count in (answers or {}).items()}
    size = lessons * 1000
    return Delta(lessons=lessons, bytes=size, millitokens=size * 1_000_000 // millibytes, answers=counted)


async def test_nothing_is_known_of_an_empty_redis(signals: RedisSignals) -> None:
    assert await signals.estimates() == {}
    assert await signals.shed() == 0


async def test_what_one_process_learns_all_know(redis: Redis, signals: RedisSignals) -> None:
    await signals.learn({"a": delta(FEWEST_LESSONS, millibytes=2500), "b": delta(50, answers={20: 45, 300: 5})})
    async with signalling(redis) as other:
        assert await other.estimates() == {
            "a": Estimate(millibytes=2500, output_tokens=None),
            "b": Estimate(millibytes=4000, output_tokens=20),
        }


async def test_nine_of_ten_answers_are_covered(signals: RedisSignals) -> None:
    await signals.learn({"m": delta(100, answers={100: 89, 1000: 6, 10_000: 5})})
    assert (await signals.estimates())["m"].output_tokens == BOUNDS[bucket_of(1000)]


async def test_few_lessons_tell_nothing_and_sum_up(signals: RedisSignals) -> None:
    few = delta(FEWEST_LESSONS - 1, answers={100: FEWEST_LESSONS - 1})
    await signals.learn({"m": few})
    assert await signals.estimates() == {"m": Estimate()}
    await signals.learn({"m": few})
    assert (await signals.estimates())["m"] == Estimate(millibytes=4000, output_tokens=112)


async def test_lessons_of_two_processes_are_one_mean(redis: Redis, signals: RedisSignals) -> None:
    async with signalling(redis) as other:
        await signals.learn({"m": delta(30, millibytes=2000)})
        await other.learn({"m": delta(30, millibytes=6000)})
    # Of the tokens, as many bytes at 2 and at 6 a token: 3 bytes a token.
    assert (await signals.estimates())["m"].millibytes == 3000


async def test_old_lessons_fade(signals: RedisSignals) -> None:
    await signals.learn({"m": delta(MOST_LESSONS, millibytes=2000, answers={100: MOST_LESSONS})})
    for _ in range(6):
        await signals.learn({"m": delta(MOST_LESSONS // 2, millibytes=6000, answers={1000: MOST_LESSONS // 2})})
    found = (await signals.estimates())["m"]
    assert found.millibytes is not None
    assert found.millibytes > 5500
    assert found.output_tokens == 1024


async def test_the_models_learned_last_stay(signals: RedisSignals) -> None:
    await signals.learn({"first": delta(FEWEST_LESSONS)})
    await signals.learn({f"m{number:04}": delta(FEWEST_LESSONS) for number in range(MODELS)})
    found = await signals.estimates()
    assert len(found) == MODELS
    assert "first" not in found


async def test_every_key_expires_and_has_one_hash_tag(redis: Redis, signals: RedisSignals) -> None:
    await signals.learn({"m": delta(FEWEST_LESSONS)})
    await signals.say_shed("one", 100)
    keys = [str(key, "ascii") if isinstance(key, bytes) else key for key in await redis.keys()]
    assert len(keys) == 5
    assert all(key.startswith("igw1:{00}:") for key in keys)
    assert [await redis.pttl(key) > 0 for key in keys] == [True] * 5


async def test_a_models_name_may_hold_anything(signals: RedisSignals) -> None:
    name = 'ünï "quoted" \\ %s\x00\n{00}'
    await signals.learn({name: delta(FEWEST_LESSONS)})
    assert await signals.estimates() == {name: Estimate(millibytes=4000)}


async def test_the_highest_share_counts(signals: RedisSignals) -> None:
    await signals.say_shed("one", 300)
    await signals.say_shed("two", 500)
    await signals.say_shed("three", 100)
    assert await signals.shed() == 500
    await signals.say_shed("two", 0)
    assert await signals.shed() == 300
    await signals.say_shed("one", 0)
    await signals.say_shed("three", 0)
    assert await signals.shed() == 0


async def test_a_share_that_nobody_says_any_more_is_over(redis: Redis, signals: RedisSignals) -> None:
    await signals.say_shed("dead", 900)
    [highest] = [key async for key in redis.scan_iter("*highest")]
    assert 0 < await redis.pttl(highest) <= SHED_HOLD_MS
    # As if that time had passed for the one that died, while another goes on.
    await redis.hset("igw1:{00}:shed:replicas", "dead", "900 1")
    await signals.say_shed("alive", 200)
    assert await signals.shed() == 200
    assert await redis.hkeys("igw1:{00}:shed:replicas") == [b"alive"]


async def test_an_outage_is_said(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as client, signalling(client, deadline=0.2) as signals:
        await signals.learn({"m": delta(FEWEST_LESSONS)})
        with own_redis.frozen():
            for ask in (signals.estimates, signals.shed):
                with pytest.raises(QuotaOutage):
                    await ask()
            with pytest.raises(QuotaOutage):
                await signals.learn({"m": delta(1)})
            with pytest.raises(QuotaOutage):
                await signals.say_shed("one", 1)


async def test_an_error_of_redis_is_an_outage(redis: Redis, signals: RedisSignals) -> None:
    await redis.lpush("igw1:{00}:learned:estimates", "not a hash")
    with pytest.raises(QuotaOutage):
        await signals.estimates()
