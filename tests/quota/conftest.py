"""One Redis per session, emptied for each test."""

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import World, in_memory, over


@pytest.fixture(scope="session")
def redis_server() -> Iterator[OwnRedis]:
    """The session's server."""
    with running() as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    """A server of this test alone, which it may freeze or kill."""
    with running() as server:
        yield server


@pytest.fixture
async def redis(redis_server: OwnRedis) -> AsyncIterator[Redis]:
    """A client of the session's server, whose data are gone."""
    async with Redis.from_url(redis_server.url) as client:
        await client.flushdb()
        yield client


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each implementation in turn."""
    if request.param == "memory":
        yield in_memory()
        return
    server: OwnRedis = request.getfixturevalue("redis_server")
    async with Redis.from_url(server.url) as client:
        await client.flushdb()
        async with over(client) as world:
            yield world
