"""What the gateway leans on, killed or frozen until the end of a block, and then put together again."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator

from tests.support.gateway import Gateway


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def redis_killed(gateway: Gateway) -> AsyncIterator[None]:
    gateway.kill("redis")
    try:
        yield
    finally:
        gateway.start_redis()


@contextlib.asynccontextmanager
async def redis_frozen(gateway: Gateway) -> AsyncIterator[None]:
    """It takes connections and what is written to them, and does it all when it goes on."""
    with stopped(gateway.children["redis"].pid):
        yield
