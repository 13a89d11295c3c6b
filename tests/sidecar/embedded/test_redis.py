"""Does the embedded Redis keep what it was told?"""

import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from sidecar.embedded.redis import EmbeddedRedis
from sidecar.process import StartError
from tests.sidecar.embedded.processes import launch


async def test_data_survive_a_stop_and_a_start(tmp_path: Path) -> None:
    server = EmbeddedRedis(data=tmp_path / "data", socket=tmp_path / "redis.sock")
    child = await server.start(launch)
    async with Redis.from_url(server.url) as client:
        await client.set("tokens", "17")
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        assert (await client.config_get("port"))["port"] == "0"
    assert (await child.stop()).code == 0

    child = await server.start(launch)
    async with Redis.from_url(server.url) as client:
        assert await client.get("tokens") == b"17"
    os.kill(child.pid, signal.SIGKILL)
    await child.wait()

    child = await server.start(launch)  # its stale socket is no obstacle
    await child.stop()


async def test_a_folder_it_cannot_use_is_told(tmp_path: Path) -> None:
    server = EmbeddedRedis(data=tmp_path / "data", socket=tmp_path / "missing" / "redis.sock")
    with pytest.raises(StartError, match="redis ended with exit code 1"):
        await server.start(launch)
