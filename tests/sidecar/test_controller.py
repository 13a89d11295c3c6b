"""The process that serves the gateway's own API: over its socket, with and without what it needs, until SIGTERM."""

import asyncio
import os
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from authz import session as tokens
from authz.identity_token import IDENTITY_HEADER, IdentityTokens
from sidecar.process import Child, Command
from sidecar.sockets import control_socket
from store import signing_keys
from store.database import Pool
from tests.control.conftest import KEY
from tests.quota.own_redis import OwnRedis, running
from tests.sidecar.embedded.processes import until
from tests.support.values import grant

PEPPER = "a pepper of the tests, long enough for it"
NOWHERE = "postgresql://postgres@/gateway?host=/nowhere"
JWKS = "/.well-known/jwks.json"


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
def sockets() -> Iterator[Path]:
    # Not pytest's folder: a socket's path holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="gw-control-") as folder:
        yield Path(folder)


@asynccontextmanager
async def started(sockets: Path, *, database: str, redis: str, lines: list[str]) -> AsyncIterator[Child]:
    env = {
        "DATABASE_URL": database,
        "REDIS_URL": redis,
        "GATEWAY_KEY_PEPPER": PEPPER,
        "GATEWAY_SOCKET_DIR": str(sockets),
        "GATEWAY_SOCKET_MODE": "0660",
        "GATEWAY_LOG_FORMAT": "json",
    }
    argv = (sys.executable, "-m", "sidecar.controller")
    child = await Child.start(Command(name="controller", argv=argv, env=env), lambda _, line: lines.append(line))
    try:
        await until(lambda: control_socket(sockets).exists() or not child.running)
        yield child
    finally:
        await child.stop()


@asynccontextmanager
async def calling(sockets: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=str(control_socket(sockets)), retries=10)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def _until_it_says(client: httpx.AsyncClient, status: int) -> httpx.Response:
    async with asyncio.timeout(30):
        # What is asked is another process, which sets no Event.
        while (answer := await client.get(JWKS)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return answer


async def _token(pool: Pool) -> str:
    """What a worker signs, with the keys that the process made."""
    now = datetime.now(UTC)
    made = IdentityTokens(now=now.timestamp)
    made.use(await signing_keys.load(pool, PEPPER.encode(), now))
    signed = made.for_control(grant(), KEY, frozenset())
    assert signed is not None
    return signed.text


async def test_it_serves_on_its_socket_until_sigterm(
    sockets: Path, database: str, pool: Pool, redis_server: OwnRedis
) -> None:
    lines: list[str] = []
    async with started(sockets, database=database, redis=redis_server.url, lines=lines) as child:
        assert stat.S_IMODE(control_socket(sockets).stat().st_mode) == 0o660
        async with calling(sockets) as client:
            published = (await _until_it_says(client, 200)).json()["keys"]
            assert len(published) == 1
            token = await _token(pool)
            made = await client.post("/v1/sessions", headers={IDENTITY_HEADER: token})
            assert made.status_code == 201, made.text
            assert "server" not in made.headers
            listed = await client.get("/v1/sessions", headers={IDENTITY_HEADER: token})
            assert [session["id"] for session in listed.json()["data"]] == [made.json()["id"]]
            os.kill(child.pid, signal.SIGTERM)
            ended = await child.wait()
    assert ended.code == 0
    shown = tokens.parse(made.json()["token"])
    assert shown is not None
    said = "\n".join(lines)
    for secret in (shown.text, token, PEPPER):
        assert secret not in said


async def test_it_hears_of_a_new_key_at_once(sockets: Path, database: str, pool: Pool, redis_server: OwnRedis) -> None:
    lines: list[str] = []
    async with (
        started(sockets, database=database, redis=redis_server.url, lines=lines),
        calling(sockets) as client,
    ):
        await _until_it_says(client, 200)
        await pool.execute("DELETE FROM signing_keys")  # it makes another

        async def is_published() -> bool:
            (found,) = (await client.get(JWKS)).json()["keys"]
            return bool(await pool.fetchval("SELECT 1 FROM signing_keys WHERE id = $1", found["kid"]))

        async with asyncio.timeout(30):  # it would look by itself after a minute
            while not await is_published():  # noqa: ASYNC110 - what is asked is another process, which sets no Event
                await asyncio.sleep(0.01)


async def test_without_postgres_and_redis_it_starts_and_says_what_it_has_not_got(sockets: Path) -> None:
    lines: list[str] = []
    async with started(sockets, database=NOWHERE, redis="unix:///nowhere/redis.sock", lines=lines) as child:
        async with calling(sockets) as client:
            answer = await client.get(JWKS)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
            unknown = await client.get("/v1/nothing")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_path")
        os.kill(child.pid, signal.SIGTERM)
        assert (await child.wait()).code == 0


async def test_it_takes_the_place_of_one_that_was_killed(sockets: Path, database: str, redis_server: OwnRedis) -> None:
    lines: list[str] = []
    async with started(sockets, database=database, redis=redis_server.url, lines=lines) as child:
        child.kill()
        await child.wait()
    assert control_socket(sockets).exists()
    async with started(sockets, database=database, redis=redis_server.url, lines=lines), calling(sockets) as client:
        await _until_it_says(client, 200)
