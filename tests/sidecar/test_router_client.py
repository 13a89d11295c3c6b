"""Every way in which a Router can answer when it is asked to stop a request; nobody waits for it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from demo import router
from sidecar.router_client import Asked, RouterClient
from sidecar.settings import Settings
from tests.support.gateway import PEPPER, until


def _settings(**changes: Any) -> Settings:
    whole = {
        "database_url": "postgresql://x/y",
        "redis_url": "redis://x",
        "key_pepper": PEPPER,
        "socket_dir": "sockets",
    }
    return Settings(**{**whole, **changes})


@contextlib.asynccontextmanager
async def _answering(head: bytes, seen: list[bytes]) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that is closed may have connections that it has asked nothing on yet.
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            if head:
                writer.write(b"HTTP/1.1 " + head + b"\r\ncontent-length: 0\r\n\r\n")
                await writer.drain()
            else:
                await reader.read()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def _asked(settings: Settings, *request_ids: str) -> list[Asked]:
    observed: list[Asked] = []
    async with contextlib.aclosing(RouterClient(settings, observe=observed.append)) as client:
        for request_id in request_ids:
            client.stop(request_id)

        async def all_told() -> bool:
            return len(observed) == len(request_ids)

        await until(all_told)
    return observed


@pytest.mark.parametrize(
    ("head", "outcome"),
    [
        (b"202 Accepted", Asked.STOPPED),
        (b"404 Not Found", Asked.UNKNOWN),
        (b"405 Method Not Allowed", Asked.UNKNOWN),
        (b"500 Internal Server Error", Asked.FAILED),
        (b"", Asked.FAILED),
    ],
)
async def test_what_the_router_says_is_told(head: bytes, outcome: Asked) -> None:
    seen: list[bytes] = []
    async with _answering(head, seen) as url:
        settings = _settings(router_url=url, router_api_key=SecretStr("a-key-of-sixteen-letters"))
        assert await _asked(settings, "a/b") == [outcome]
    line, *_ = seen[0].split(b"\r\n")
    assert line == b"DELETE /v1/infer/a%2Fb HTTP/1.1"
    assert b"x-internal-api-key: a-key-of-sixteen-letters" in seen[0]


async def test_a_router_that_is_not_there_is_a_failure() -> None:
    assert await _asked(_settings(router_url="http://127.0.0.1:1/"), "a") == [Asked.FAILED]


async def test_without_an_address_nobody_is_asked() -> None:
    observed: list[Asked] = []
    async with contextlib.aclosing(RouterClient(_settings(), observe=observed.append)) as client:
        client.stop("a")
    assert observed == []


async def test_a_router_that_hangs_is_asked_no_more_after_a_while() -> None:
    async with _answering(b"", []) as url:
        observed = await _asked(_settings(router_url=url), *map(str, range(300)))
    assert observed.count(Asked.SKIPPED) == 300 - 256


async def test_the_stand_in_knows_no_request_that_does_not_run() -> None:
    async with router.running() as url:
        assert await _asked(_settings(router_url=url), "a") == [Asked.UNKNOWN]
