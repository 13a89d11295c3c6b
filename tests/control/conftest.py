"""The API over a real Postgres and a real Redis, called as Envoy calls it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import httpx
import pytest
from redis.asyncio import Redis

from authz.directory import Directory
from authz.grant import Grant
from authz.identity_token import IDENTITY_HEADER, IdentityTokens
from authz.key_ring import KeyRing, generate
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope
from authz.session import Session, Sessions
from control.application import Resources, application
from control.cancel import Stopping
from control.limits import Standings
from control.observers import Observers
from control.sessions import Lifetimes
from quota.pipe import RedisPipe
from quota.redis import RedisReservations
from quota.redis_log import RedisRequestLog
from store.database import Pool, opened
from store.directory import PostgresDirectory
from store.requests import LiveRequests
from store.sessions import RedisSessions
from tests.quota.own_redis import OwnRedis, running
from tests.support.values import REQUEST_ID, Clock, grant

PEPPER = b"a pepper of the tests, 32 bytes!"
KEY = Handle(PrincipalKind.API_KEY, "k")
NOWHERE = "postgresql://postgres@/gateway?host=/nowhere"
_PATIENT_SECONDS = 10.0


def ring_at(now: datetime) -> KeyRing:
    """A ring whose one key signs since yesterday."""
    yesterday = now - timedelta(days=1)
    return KeyRing((generate(created_at=yesterday, active_from=yesterday),))


@dataclass(slots=True)
class Api:
    """The application, and what stands around it."""

    sessions: Sessions
    pool: Pool
    standings: Standings = field(default_factory=lambda: cast("Standings", NoSessions()))
    live: LiveRequests = field(default_factory=lambda: cast("LiveRequests", NoSessions()))
    stopping: Stopping = field(default_factory=lambda: cast("Stopping", NoSessions()))
    observers: Observers = field(default_factory=lambda: Observers(cast("RedisRequestLog", NoSessions())))
    clock: Clock = field(default_factory=Clock)
    ring: KeyRing | None = None
    errors: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ring = ring_at(self.now())

    @property
    def directory(self) -> Directory:
        return PostgresDirectory(self.pool)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now(), UTC)

    def token(self, caller: Grant | None = None, handle: Handle = KEY, claimed: frozenset[Scope] = frozenset()) -> str:
        """What Check says of a caller."""
        tokens = IdentityTokens(now=self.clock.now)
        tokens.use(self.ring or KeyRing())
        signed = tokens.for_control(caller or grant(), handle, claimed)
        assert signed is not None
        return signed.text

    def as_(self, caller: Grant | None = None, **more: Any) -> dict[str, str]:
        """The headers of a caller."""
        return {
            IDENTITY_HEADER: self.token(caller, **more),
            "x-request-id": REQUEST_ID,
            "x-gateway-client-address": "192.0.2.1",
        }

    def resources(self) -> Resources:
        return Resources(
            ring=lambda: self.ring,
            sessions=self.sessions,
            directory=self.directory,
            standings=self.standings,
            live=self.live,
            stopping=self.stopping,
            observers=self.observers,
            pool=self.pool,
            pepper=PEPPER,
            lifetimes=Lifetimes(idle_seconds=1800, lifetime_seconds=43_200),
            now=self.now,
            observe_error=self.errors.append,
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(application(self.resources()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client

    async def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        """One request, as the key `k` of ten_a unless it says otherwise."""
        if "headers" not in request:
            request["headers"] = self.as_()
        async with self.client() as client:
            return await client.request(method, path, **request)

    async def audited(self) -> list[dict[str, Any]]:
        rows = await self.pool.fetch("SELECT * FROM audit ORDER BY number")
        return [dict(row) for row in rows]


def by_session(session_id: str) -> Grant:
    """The same principal, come by a session."""
    return grant(principal_kind=PrincipalKind.SESSION, session_id=session_id)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@asynccontextmanager
async def pipe_to(server: OwnRedis, *, deadline: float = _PATIENT_SECONDS) -> AsyncIterator[RedisPipe]:
    async with (
        Redis.from_url(server.url) as redis,
        aclosing(RedisPipe(redis.connection_pool.make_connection, deadline=deadline)) as pipe,
    ):
        yield pipe


@asynccontextmanager
async def sessions_at(server: OwnRedis, *, deadline: float = _PATIENT_SECONDS) -> AsyncIterator[RedisSessions]:
    async with pipe_to(server, deadline=deadline) as pipe:
        yield RedisSessions(pipe, pepper=PEPPER)


@pytest.fixture
async def pipe(redis_server: OwnRedis) -> AsyncIterator[RedisPipe]:
    async with Redis.from_url(redis_server.url) as redis:
        await redis.flushdb()
    async with pipe_to(redis_server) as pipe:
        yield pipe


@pytest.fixture
async def sessions(pipe: RedisPipe) -> RedisSessions:
    return RedisSessions(pipe, pepper=PEPPER)


@pytest.fixture
async def api(pipe: RedisPipe, sessions: RedisSessions, pool: Pool) -> Api:
    reservations = RedisReservations(pipe)
    return Api(sessions, pool, reservations, reservations)


class NoSessions:
    """A store in which nobody has a session, and nobody gets one."""

    async def list_of(self, _: str) -> list[Session]:
        return []

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was not expected")


@pytest.fixture
async def offline(nowhere: Pool) -> Api:
    """The API without Postgres and Redis: who calls is known without them."""
    return Api(cast("Sessions", NoSessions()), nowhere)


@pytest.fixture
async def nowhere() -> AsyncIterator[Pool]:
    """A database that cannot be reached."""
    async with opened(NOWHERE) as pool:
        yield pool
