"""The contract of `authz.session.Sessions`, in memory and over a real Redis; and what only Redis must keep."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import msgspec
import pytest
from redis.asyncio import Redis

from authz.principal import Handle, PrincipalKind
from authz.scope import Scope
from authz.session import (
    MAX_SESSIONS_PER_PRINCIPAL,
    Session,
    SessionOutage,
    Sessions,
    SessionToken,
    generate,
    keyed_hash,
)
from quota.pipe import RedisPipe
from quota.redis import shard_of
from store.sessions import RedisSessions
from tests.quota.own_redis import OwnRedis, running
from tests.quota.worlds import PATIENT_SECONDS
from tests.support.memory_sessions import MemorySessions
from tests.support.values import NOON_MS, Clock

PEPPER = b"p" * 32
SEAL_BYTES = 32
MINE, THEIRS = "key_mine", "jwt_theirs"
INDEX = f"igw1:{{{shard_of(MINE):02}}}:sessions:{MINE}"


def _made(principal_id: str = MINE, **changes: Any) -> tuple[SessionToken, Session]:
    """A token and its session, of an hour and idle for a minute; its maker's clock is not the store's."""
    token = generate(shard_of(principal_id))
    whole = {
        "id": token.id,
        "handle": Handle(PrincipalKind.JWT, principal_id, "ten_a", "pro", ("viewer", "writer")),
        "claimed_scopes": frozenset({Scope.INFERENCE_TEXT, Scope.USAGE_READ}),
        "principal_id": principal_id,
        "tenant_id": "ten_a",
        "created_ms": NOON_MS + 500,
        "expires_ms": NOON_MS + 3_600_500,
        "idle_ms": 60_000,
        "last_used_ms": NOON_MS + 500,
        "cookie": True,
        "name": "Grüße {of} a:browser",
        "source": "192.0.2.7",
    }
    return token, Session(**{**whole, **changes})


def _lasting(lifetime_ms: int, **changes: Any) -> tuple[SessionToken, Session]:
    return _made(created_ms=NOON_MS, expires_ms=NOON_MS + lifetime_ms, **changes)


class World(Protocol):
    """An implementation under test, and its clock."""

    @property
    def sessions(self) -> Sessions: ...

    async def now_ms(self) -> int: ...

    async def pass_time(self, ms: int) -> None: ...


@dataclass(frozen=True, slots=True)
class MemoryWorld:
    clock: Clock
    sessions: MemorySessions

    async def now_ms(self) -> int:
        return self.clock.ms

    async def pass_time(self, ms: int) -> None:
        self.clock.ms += ms


@dataclass(frozen=True, slots=True)
class RedisWorld:
    """Its clock is Redis's own, which nobody can turn: time is waited for."""

    redis: Redis
    sessions: RedisSessions

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def pass_time(self, ms: int) -> None:
        until = await self.now_ms() + ms
        while await self.now_ms() < until:  # noqa: ASYNC110 - what is waited for is another process's clock
            await asyncio.sleep(0.002)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
async def redis(redis_server: OwnRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
        yield client


def _piped(redis: Redis, *, deadline: float = PATIENT_SECONDS) -> aclosing[RedisPipe]:
    return aclosing(RedisPipe(redis.connection_pool.make_connection, deadline=deadline))


@pytest.fixture
async def over_redis(redis: Redis) -> AsyncIterator[RedisWorld]:
    async with _piped(redis) as pipe:
        yield RedisWorld(redis, RedisSessions(pipe, pepper=PEPPER))


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        clock = Clock()
        yield MemoryWorld(clock, MemorySessions(clock.now_ms))
        return
    server: OwnRedis = request.getfixturevalue("redis_server")
    async with Redis.from_url(server.url) as redis, _piped(redis) as pipe:
        await redis.flushall()
        yield RedisWorld(redis, RedisSessions(pipe, pepper=PEPPER))


async def _keys(redis: Redis) -> list[str]:
    return [key if isinstance(key, str) else key.decode() for key in await redis.keys()]


async def _ends(redis: Redis, token: SessionToken) -> float:
    """When the session ends, as the index of its principal says."""
    index: Any = await redis.zrange(INDEX, 0, -1, withscores=True)
    (end,) = [score for member, score in index if member.startswith(token.id.encode())]
    return float(end)


def _timeless(session: Session | None) -> Session | None:
    return None if session is None else replace(session, created_ms=0, expires_ms=0, last_used_ms=0)


async def test_what_is_made_is_found(world: World) -> None:
    token, session = _made()
    before = await world.now_ms()
    assert await world.sessions.create(token, session)
    found = await world.sessions.find(token)
    after = await world.now_ms()
    assert found is not None
    assert _timeless(found) == _timeless(session)
    assert before <= found.created_ms <= found.last_used_ms <= after
    assert found.expires_ms == found.created_ms + 3_600_000


async def test_another_token_finds_nothing(world: World) -> None:
    token, session = _made()
    await world.sessions.create(token, session)
    assert await world.sessions.find(_made()[0]) is None
    # Not even one of the same public id.
    assert await world.sessions.find(replace(token, text=_made()[0].text)) is None


async def test_a_token_of_another_session_is_a_bug(world: World) -> None:
    with pytest.raises(ValueError, match="another session"):
        await world.sessions.create(_made()[0], _made()[1])


async def test_each_use_is_noted_and_a_list_is_no_use(world: World) -> None:
    token, session = _made()
    await world.sessions.create(token, session)
    await world.pass_time(5)
    (listed,) = await world.sessions.list_of(MINE)
    assert listed.last_used_ms == listed.created_ms
    found = await world.sessions.find(token)
    assert found is not None
    assert found.last_used_ms >= found.created_ms + 5
    assert await world.sessions.list_of(MINE) == [found]


async def test_a_session_ends_when_it_is_idle(world: World) -> None:
    token, session = _made(idle_ms=30)
    await world.sessions.create(token, session)
    await world.pass_time(30)
    assert await world.sessions.find(token) is None
    assert await world.sessions.list_of(MINE) == []
    assert not await world.sessions.revoke(MINE, token.id)


async def test_a_session_ends_absolutely_however_often_it_is_used(world: World) -> None:
    token, session = _lasting(60)
    await world.sessions.create(token, session)
    begun = await world.now_ms()
    while await world.now_ms() < begun + 60:
        await world.sessions.find(token)
        await world.pass_time(10)
    assert await world.sessions.find(token) is None
    assert await world.sessions.revoke_all(MINE) == 0


async def test_the_newest_is_listed_first_and_only_the_principals_own(world: World) -> None:
    made = [_made() for _ in range(3)]
    for token, session in (*made, _made(THEIRS)):
        await world.sessions.create(token, session)
        await world.pass_time(2)
    listed = await world.sessions.list_of(MINE)
    assert [session.id for session in listed] == [token.id for token, _ in reversed(made)]
    assert await world.sessions.list_of("nobody") == []


async def test_one_is_revoked_and_the_others_go_on(world: World) -> None:
    (one, first), (other, second) = _made(), _made()
    await world.sessions.create(one, first)
    await world.sessions.create(other, second)
    assert await world.sessions.revoke(MINE, one.id)
    assert await world.sessions.find(one) is None
    assert await world.sessions.find(other) is not None
    assert not await world.sessions.revoke(MINE, one.id)
    assert [session.id for session in await world.sessions.list_of(MINE)] == [other.id]


@pytest.mark.parametrize("session_id", ["", "*", ".*", "ses_", "ses_07:", "\x00"])
async def test_what_is_no_sessions_id_revokes_nothing(world: World, session_id: str) -> None:
    token, session = _made()
    await world.sessions.create(token, session)
    assert not await world.sessions.revoke(MINE, session_id)
    assert await world.sessions.find(token) is not None


async def test_a_foreign_session_cannot_be_revoked(world: World) -> None:
    # In the same shard too, where only the principal tells them apart.
    neighbour = next(f"key_{at}" for at in range(1000) if shard_of(f"key_{at}") == shard_of(MINE))
    token, session = _made()
    await world.sessions.create(token, session)
    for foreign in (THEIRS, neighbour):
        assert not await world.sessions.revoke(foreign, token.id)
        assert await world.sessions.revoke_all(foreign) == 0
    assert await world.sessions.find(token) is not None


async def test_all_of_one_principal_are_revoked_and_a_later_one_lives(world: World) -> None:
    mine, theirs = [_made() for _ in range(3)], _made(THEIRS)
    for token, session in (*mine, theirs):
        await world.sessions.create(token, session)
    assert await world.sessions.revoke_all(MINE) == 3
    assert [await world.sessions.find(token) for token, _ in mine] == [None] * 3
    assert await world.sessions.find(theirs[0]) is not None
    later, session = _made()
    assert await world.sessions.create(later, session)
    assert await world.sessions.find(later) is not None


async def test_a_principal_has_so_many_and_no_more_until_one_is_gone(world: World) -> None:
    made = [_made() for _ in range(MAX_SESSIONS_PER_PRINCIPAL)]
    for token, session in made:
        assert await world.sessions.create(token, session)
    refused, session = _made()
    assert not await world.sessions.create(refused, session)
    assert await world.sessions.find(refused) is None
    assert await world.sessions.create(*_made(THEIRS))
    await world.sessions.revoke(MINE, made[0][0].id)
    # One that ends by itself makes room as well.
    assert await world.sessions.create(*_made(idle_ms=20))
    await world.pass_time(20)
    assert await world.sessions.create(*_made())
    assert not await world.sessions.create(*_made())


async def test_two_clients_race_to_make_and_to_revoke_and_none_is_lost(redis: Redis) -> None:
    async with _piped(redis) as pipe, _piped(redis) as other_pipe:
        making, revoking = RedisSessions(pipe, pepper=PEPPER), RedisSessions(other_pipe, pepper=PEPPER)
        made = [_made() for _ in range(60)]
        revoked = 0
        for at in range(0, len(made), 10):
            created = asyncio.gather(*(making.create(*one) for one in made[at : at + 10]))
            counts = asyncio.gather(*(revoking.revoke_all(MINE) for _ in range(3)))
            assert all(await created)
            revoked += sum(await counts)
        living = {session.id for session in await revoking.list_of(MINE)}
        assert len(living) + revoked == len(made)
        for token, _ in made:
            assert (await revoking.find(token) is not None) == (token.id in living)
        assert await making.revoke_all(MINE) == len(living)
        assert await redis.keys() == []


async def test_many_clients_at_once_make_no_more_than_the_most(redis: Redis) -> None:
    async with _piped(redis) as one, _piped(redis) as other:
        clients = [RedisSessions(pipe, pepper=PEPPER) for pipe in (one, other)]
        answers = await asyncio.gather(
            *(clients[at % 2].create(*_made()) for at in range(MAX_SESSIONS_PER_PRINCIPAL + 20))
        )
        assert sum(answers) == MAX_SESSIONS_PER_PRINCIPAL


async def test_a_use_at_the_same_time_does_not_bring_a_revoked_session_back(redis: Redis) -> None:
    async with _piped(redis) as one, _piped(redis) as other:
        using, revoking = (RedisSessions(pipe, pepper=PEPPER) for pipe in (one, other))
        for _ in range(20):
            token, session = _made()
            await using.create(token, session)
            uses = asyncio.gather(*(using.find(token) for _ in range(10)))
            assert await revoking.revoke(MINE, token.id)
            await uses
            assert await using.find(token) is None
        assert await redis.keys() == []


async def test_all_keys_of_a_principal_share_one_hash_tag_and_end_by_themselves(
    redis: Redis, over_redis: RedisWorld
) -> None:
    for principal in (MINE, THEIRS, "key_{evil}", "key}x{"):
        await redis.flushall()
        for _ in range(2):
            token, session = _made(principal)
            await over_redis.sessions.create(token, session)
            assert await over_redis.sessions.find(token) is not None
        keys = await _keys(redis)
        assert len(keys) == 3, "two records, one index"
        # Redis Cluster, "hash tags": what is between the first { and the first } after it.
        assert {re.search(r"\{(.*?)\}", key).group(1) for key in keys} == {f"{shard_of(principal):02}"}  # type: ignore[union-attr]
        assert all(key.startswith("igw1:{") for key in keys)
        assert min([await redis.pttl(key) for key in keys]) > 0


async def test_the_index_outlives_the_longest_session_and_holds_nothing_that_ended(
    redis: Redis, over_redis: RedisWorld
) -> None:
    await over_redis.sessions.create(*_made())
    for _ in range(5):
        await over_redis.sessions.create(*_lasting(20))
    assert await redis.pttl(INDEX) > 60_000
    await over_redis.pass_time(20)
    await over_redis.sessions.create(*_made())
    assert await redis.zcard(INDEX) == 2


async def test_a_session_whose_record_was_evicted_is_not_listed_and_leaves_the_index(
    redis: Redis, over_redis: RedisWorld
) -> None:
    token, session = _made()
    await over_redis.sessions.create(token, session)
    await redis.delete(*(key for key in await _keys(redis) if ":session:" in key))
    assert await over_redis.sessions.find(token) is None
    assert await redis.zcard(INDEX) == 1
    assert await over_redis.sessions.list_of(MINE) == []
    assert await redis.zcard(INDEX) == 0


async def test_a_use_moves_the_end_in_the_index_but_never_past_the_absolute_end(
    redis: Redis, over_redis: RedisWorld
) -> None:
    (idling, session), (ending, short) = _made(), _lasting(30_000)
    await over_redis.sessions.create(idling, session)
    await over_redis.sessions.create(ending, short)
    before = [await _ends(redis, token) for token in (idling, ending)]
    await over_redis.pass_time(20)
    used = await over_redis.sessions.find(idling)
    await over_redis.sessions.find(ending)
    assert used is not None
    assert await _ends(redis, idling) == used.ends_ms >= before[0] + 20
    assert await _ends(redis, ending) == before[1]


async def test_redis_holds_neither_the_token_nor_its_secret(redis: Redis, over_redis: RedisWorld) -> None:
    token, session = _made()
    await over_redis.sessions.create(token, session)
    secret = token.text.split("_")[2].encode()
    keys = await _keys(redis)
    stored = b"".join([await redis.dump(key) or b"" for key in keys]) + "".join(keys).encode()
    assert token.id.encode() in stored
    assert secret not in stored


async def test_whoever_writes_redis_makes_no_session_and_moves_none(redis: Redis, over_redis: RedisWorld) -> None:
    token, session = _made()
    thief, poor = _made()
    for one, of in ((token, session), (thief, poor)):
        assert await over_redis.sessions.create(one, of)
    [key] = [key for key in await _keys(redis) if key.endswith(f":{keyed_hash(token, PEPPER).hex()}")]
    [mine] = [key for key in await _keys(redis) if key.endswith(f":{keyed_hash(thief, PEPPER).hex()}")]
    right: Any = await redis.hget(key, "session")
    for forged in (right.replace(b"api_key", b"APIkey_"), right[SEAL_BYTES:], b"", right):
        await redis.hset(mine, "session", forged)
        assert await over_redis.sessions.find(thief) is None
    assert await over_redis.sessions.find(token) is not None


async def test_another_pepper_opens_nothing(redis: Redis, over_redis: RedisWorld) -> None:
    token, session = _made()
    await over_redis.sessions.create(token, session)
    async with _piped(redis) as pipe:
        assert await RedisSessions(pipe, pepper=b"q" * 32).find(token) is None


async def test_a_token_in_another_shard_than_its_principal_is_a_bug(over_redis: RedisWorld) -> None:
    _, session = _made()
    stray = generate((shard_of(MINE) + 1) % 16)
    with pytest.raises(ValueError, match="another shard"):
        await over_redis.sessions.create(stray, replace(session, id=stray.id))


async def test_a_session_that_cannot_be_read_is_none(redis: Redis, over_redis: RedisWorld) -> None:
    token, session = _made()
    await over_redis.sessions.create(token, session)
    record = next(key for key in await _keys(redis) if ":session:" in key)
    known = msgspec.json.decode((await redis.hget(record, "session") or b"")[SEAL_BYTES:])
    text = msgspec.json.encode({**known, "claimed_scopes": ["of:tomorrow"]})
    await redis.hset(record, "session", over_redis.sessions._seal(keyed_hash(token, PEPPER).hex(), text) + text)
    assert await over_redis.sessions.find(token) is None
    assert await over_redis.sessions.list_of(MINE) == []
    assert await over_redis.sessions.revoke(MINE, token.id)


async def test_without_redis_everything_is_an_outage(redis_server: OwnRedis, redis: Redis) -> None:
    token, session = _made()
    async with _piped(redis, deadline=0.05) as pipe:
        sessions = RedisSessions(pipe, pepper=PEPPER)
        calls = (
            lambda: sessions.create(token, session),
            lambda: sessions.find(token),
            lambda: sessions.list_of(MINE),
            lambda: sessions.revoke(MINE, token.id),
            lambda: sessions.revoke_all(MINE),
        )
        with redis_server.frozen():
            for call in calls:
                with pytest.raises(SessionOutage) as caught:
                    await call()
                assert token.text not in str(caught.value)


async def test_the_sessions_outlive_a_flush_of_the_scripts(redis: Redis, over_redis: RedisWorld) -> None:
    token, session = _made()
    for call in (over_redis.sessions.create(token, session), over_redis.sessions.find(token)):
        await redis.script_flush()
        assert await call
