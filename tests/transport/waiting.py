"""How does a test wait for what it cannot be told? Without a clock: until it is so, or until nothing more happens."""

import asyncio
from collections.abc import Callable

from tests.transport.client import PATIENCE_SECONDS, Client

_ROUNDS = 50


async def until(is_so: Callable[[], bool], client: Client) -> None:
    """Wait until it is so. Calls of the client pass the time: both sides' loops go round."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():
            await client.unary(b"tick")


async def still(count: Callable[[], int], client: Client) -> int:
    """The count, when it has not changed for many round trips of the client."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            before = count()
            for _ in range(_ROUNDS):
                await client.unary(b"tick")
            if count() == before:
                return before
