"""How long does a process of the sidecar live? Until SIGTERM or SIGINT, or until a defect in its work ends it."""

import asyncio
import gc
import signal
from collections.abc import Coroutine
from typing import Any

_CANCEL_SECONDS = 0.5


def termination() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set, from now on, in place of what they did."""
    terminated = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, terminated.set)
    return terminated


def settle_in() -> None:
    """Keep what is alive now from the garbage collector: it stays, and looking at it all takes 60 ms at a time."""
    gc.collect()
    gc.freeze()


async def run_until(ended: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
    """Run endless work until the event. What any of it raises is raised: the supervisor starts the process anew."""
    settle_in()
    waiting = asyncio.create_task(ended.wait())
    tasks: set[asyncio.Task[Any]] = {asyncio.create_task(coroutine) for coroutine in work}
    done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    running = {waiting, *tasks}
    while running:
        # Again and again: asyncio.wait_for of Python 3.11 may swallow a cancellation.
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=_CANCEL_SECONDS)
    for task in done - {waiting}:
        task.result()
