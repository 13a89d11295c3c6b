"""How do Lua scripts reach Redis cheaply? Calls made in the same turn of the event loop share one pipeline.

A round trip costs redis-py about 50 µs of CPU, a further call in the same pipeline about 20.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from quota.reservation import QuotaOutage

Argument = str | bytes | int


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of `quota/lua` and the digest that Redis knows it by."""

    source: str
    sha: str


def load(name: str) -> Script:
    """Read `quota/lua/<name>.lua`."""
    source = (files("quota") / "lua" / f"{name}.lua").read_text()
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(slots=True)
class _Call:
    script: Script
    keys: Sequence[str]
    arguments: Sequence[Argument]
    answer: asyncio.Future[Any]


class ScriptRunner:
    """Runs scripts on one Redis. Every call ends within `deadline` seconds, with `QuotaOutage` if need be."""

    def __init__(self, redis: Redis, *, deadline: float) -> None:
        self._redis = redis
        self._deadline = deadline
        self._waiting: list[_Call] = []
        self._batches: set[asyncio.Task[None]] = set()

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """The script's answer."""
        loop = asyncio.get_running_loop()
        call = _Call(script, keys, arguments, loop.create_future())
        if not self._waiting:
            loop.call_soon(self._start_batch)
        self._waiting.append(call)
        return await call.answer

    def _start_batch(self) -> None:
        calls, self._waiting = self._waiting, []
        batch = asyncio.get_running_loop().create_task(self._run_batch(calls))
        self._batches.add(batch)
        batch.add_done_callback(self._batches.discard)

    async def _run_batch(self, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                answers = await self._execute(calls)
                missing = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
                if missing:
                    again = await self._load_and_execute([calls[at] for at in missing])
                    for at, answer in zip(missing, again, strict=True):
                        answers[at] = answer
        except (RedisError, OSError, TimeoutError) as error:
            answers = [error] * len(calls)
        for call, answer in zip(calls, answers, strict=True):
            _resolve(call, answer)

    async def _execute(self, calls: list[_Call]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for call in calls:
            pipeline.evalsha(call.script.sha, len(call.keys), *call.keys, *call.arguments)
        return list(await pipeline.execute(raise_on_error=False))

    async def _load_and_execute(self, calls: list[_Call]) -> list[Any]:
        # Redis was restarted or flushed its scripts.
        for source in {call.script.source for call in calls}:
            await self._redis.script_load(source)
        return await self._execute(calls)


def _resolve(call: _Call, answer: Any) -> None:
    if call.answer.done():  # the caller has left
        return
    if isinstance(answer, Exception):
        outage = QuotaOutage(f"Redis could not be asked: {type(answer).__name__}: {answer}")
        outage.__cause__ = answer
        call.answer.set_exception(outage)
    else:
        call.answer.set_result(answer)
