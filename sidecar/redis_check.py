"""Is Redis set up so that it keeps what it is told? Asked once, at the start; the answer is for the log.

Of a cluster, the servers that REDIS_URL names are asked. What a managed Redis does not let anybody ask is not said.
"""

import contextlib
from typing import Any

from redis.exceptions import ResponseError

from quota.pipe import Argument, RedisPipe
from quota.reservation import QuotaOutage
from sidecar import redis_client
from sidecar.settings import Settings

_EVICTS = (
    "Redis evicts data when its memory is full (maxmemory-policy {policy}): room under limits would be given away "
)
_EVICTS += "twice. Set it to noeviction."
_FORGETS = "Redis keeps nothing over a restart (appendonly no, save off): requests that have ended, and are not in the "
_FORGETS += "ledger yet, would be lost. Set appendonly to yes."


async def concerns(settings: Settings, *, seconds: float) -> list[str]:
    """What is wrong with Redis's own settings, a sentence each. Empty when it cannot be asked within `seconds`."""
    said: dict[str, None] = {}
    for url in redis_client.urls(settings):
        async with contextlib.aclosing(redis_client.server_pipe(url, deadline=seconds)) as pipe:
            said |= dict.fromkeys(await _of_server(pipe))
    return list(said)


async def _of_server(pipe: RedisPipe) -> list[str]:
    found = []
    policy = (await _info(pipe, "memory")).get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(_EVICTS.format(policy=policy))
    appends = (await _info(pipe, "persistence")).get("aof_enabled")
    if appends == "0" and await _config(pipe, "save") == "":
        found.append(_FORGETS)
    return found


async def _info(pipe: RedisPipe, section: str) -> dict[str, str]:
    lines = _text(await _ask(pipe, "INFO", section)).splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


async def _config(pipe: RedisPipe, name: str) -> str | None:
    """None when it may not be asked."""
    answer = await _ask(pipe, "CONFIG", "GET", name)
    # Pairs in Redis' second protocol, a map in its third.
    values = list(answer.values()) if isinstance(answer, dict) else list(answer or ())[1:]
    return _text(values[0]) if values else None


async def _ask(pipe: RedisPipe, *command: Argument) -> Any:
    with contextlib.suppress(QuotaOutage, ResponseError):
        return await pipe.call(*command)
    return None


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
