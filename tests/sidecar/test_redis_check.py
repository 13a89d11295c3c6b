"""What is said about the settings of a Redis: nothing of a good one, and a sentence of each that loses data."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar import redis_check, redis_client
from sidecar.settings import Settings
from tests.quota.own_redis import OwnRedis, running

PATIENT_SECONDS = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


def _settings(url: str) -> Settings:
    return Settings(
        redis_url=url,
        database_url="postgres://nobody@localhost/none",
        key_pepper="p" * 32,
        signing_key_secret="s" * 32,
        socket_dir=Path("sockets"),
    )


async def test_a_redis_that_keeps_everything_is_no_concern(server: OwnRedis) -> None:
    assert await redis_check.concerns(_settings(server.url), seconds=PATIENT_SECONDS) == []
    assert await redis_client.answers(_settings(server.url), seconds=PATIENT_SECONDS)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_redis_that_evicts_or_forgets_is_one(server: OwnRedis, protocol: int) -> None:
    url = f"{server.url}?protocol={protocol}"
    async with Redis.from_url(server.url) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.config_set("appendonly", "no")
        try:
            evicts, forgets = await redis_check.concerns(_settings(url), seconds=PATIENT_SECONDS)
            assert "allkeys-lru" in evicts
            assert "appendonly" in forgets
            await redis.config_set("save", "60 1")
            assert await redis_check.concerns(_settings(url), seconds=PATIENT_SECONDS) == [evicts]
        finally:
            await redis.config_set("save", "")
            await redis.config_set("appendonly", "yes")
            await redis.config_set("maxmemory-policy", "noeviction")


async def test_who_may_not_ask_says_nothing(server: OwnRedis) -> None:
    async with Redis.from_url(server.url) as redis:
        await redis.acl_setuser("guest", enabled=True, passwords=["+secret"], commands=["+ping"])
        url = f"{server.url}?username=guest&password=secret"
        assert await redis_check.concerns(_settings(url), seconds=PATIENT_SECONDS) == []
        assert await redis_client.answers(_settings(url), seconds=PATIENT_SECONDS)
        await redis.acl_deluser("guest")


async def test_a_redis_that_is_away_is_no_reason_not_to_start(tmp_path: Path) -> None:
    settings = _settings(f"unix://{tmp_path}/nobody.sock")
    assert await redis_check.concerns(settings, seconds=1.0) == []
    assert not await redis_client.answers(settings, seconds=1.0)
