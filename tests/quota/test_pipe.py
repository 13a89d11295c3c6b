"""How commands reach Redis: few round trips, a deadline that holds, and no lasting harm from what Redis may do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from quota.pipe import RedisPipe
from quota.reservation import Exceeded, QuotaOutage, Reservation
from quota.scripts import Script, load, run
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import piped, reserving, used
from tests.support.values import amounts, claim, held, progress, settlement, slots, tokens_a_day

SCRIPTS = ["reserve", "settle", "renew", "overdue", "standings"]


@dataclass(slots=True)
class Proxy:
    """A socket in front of Redis. What a client sends at once is one round trip; `deaf` connections get no answer."""

    target: Path
    round_trips: int = 0
    deaf: int = 0
    opened: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        if self.opened <= self.deaf:
            await reader.read()  # to its end
            writer.close()
            return
        from_redis, to_redis = await asyncio.open_unix_connection(self.target)
        task = asyncio.create_task(_pump(from_redis, writer))
        self.tasks.add(task)
        while data := await reader.read(1 << 20):
            self.round_trips += 1
            to_redis.write(data)
        to_redis.close()
        await task


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 20):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def proxied(server: OwnRedis, path: Path, *, deaf: int = 0) -> AsyncIterator[tuple[Redis, Proxy]]:
    proxy = Proxy(server.socket, deaf=deaf)
    listening = await asyncio.start_unix_server(proxy.serve, path)
    async with listening, Redis(unix_socket_path=str(path)) as redis:
        yield redis, proxy
    await asyncio.gather(*proxy.tasks)


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[RedisPipe]:
    async with piped(redis) as pipe:
        yield pipe


@pytest.mark.parametrize("name", SCRIPTS)
async def test_redis_knows_each_script_by_the_digest_we_compute(redis: Redis, name: str) -> None:
    script = load(name)
    assert (await redis.script_load(script.source)) in {script.sha, script.sha.encode()}


async def test_each_caller_gets_its_own_answer(pipe: RedisPipe) -> None:
    for turn in range(3):
        answers = await asyncio.gather(*(pipe.call("ECHO", f"{turn}.{number}") for number in range(200)))
        assert answers == [f"{turn}.{number}".encode() for number in range(200)]


async def test_callers_that_come_while_others_wait_get_their_own_answers_too(pipe: RedisPipe) -> None:
    async def ask(number: int) -> Any:
        for _ in range(number % 5):
            await asyncio.sleep(0)
        return await pipe.call("ECHO", "x" * (number * 100))

    answers = await asyncio.gather(*(ask(number) for number in range(300)))
    assert [len(answer) for answer in answers] == [number * 100 for number in range(300)]


async def test_calls_of_one_turn_of_the_loop_share_a_round_trip(redis_server: OwnRedis, tmp_path: Path) -> None:
    async with proxied(redis_server, tmp_path / "proxy.sock") as (client, proxy), piped(client) as pipe:
        await pipe.call("PING")
        before = proxy.round_trips
        await asyncio.gather(*(pipe.call("ECHO", number) for number in range(50)))
        assert proxy.round_trips - before == 1
        for number in range(5):
            await pipe.call("ECHO", number)
        assert proxy.round_trips - before == 6
        assert proxy.opened == 1


async def test_forgotten_scripts_are_sent_again_and_every_call_is_answered(redis: Redis) -> None:
    limit = slots(1000)
    async with reserving(redis) as reservations:
        for _ in range(2):
            await redis.script_flush()
            answers = await asyncio.gather(
                *(reservations.reserve(claim(f"r{number}", held(limit))) for number in range(20)),
                *(reservations.settle(settlement(f"s{number}", admission=b"x")) for number in range(20)),
            )
            assert all(isinstance(answer, Reservation) for answer in answers[:20])
            assert await used(reservations, limit) == 20
        known = await redis.script_exists(*(load(name).sha for name in ("reserve", "settle")))
        assert all(known), "only the first call pays for the text"


async def test_an_error_is_for_its_caller_alone(pipe: RedisPipe) -> None:
    asked = [asyncio.ensure_future(pipe.call(*command)) for command in (("ECHO", "a"), ("NONSENSE",), ("ECHO", "b"))]
    await asyncio.wait(asked)
    assert isinstance(asked[1].exception(), ResponseError)
    assert [asked[0].result(), asked[2].result()] == [b"a", b"b"]


async def test_a_script_that_fails_is_an_outage(redis: Redis, pipe: RedisPipe) -> None:
    source = "return redis.call('NONSENSE')"
    sha = await redis.script_load(source)
    with pytest.raises(QuotaOutage):
        await run(pipe, Script(source, sha.decode() if isinstance(sha, bytes) else sha), [], [])


async def test_an_argument_that_cannot_be_sent_ends_its_call_and_shifts_no_answer(redis: Redis) -> None:
    async with piped(redis, deadline=0.5) as pipe:
        assert await pipe.call("ECHO", "warm") == b"warm"
        asked = [asyncio.ensure_future(pipe.call("ECHO", text)) for text in ("with it", "\ud800")]
        later = asyncio.ensure_future(_later(pipe))
        done, waiting = await asyncio.wait([*asked, later], timeout=5)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*done, *waiting, return_exceptions=True)
        assert not waiting, "every call ends within the deadline"
        assert asked[1].exception() is not None
        assert asked[0].exception() is not None or asked[0].result() == b"with it"
        assert later.exception() is not None or later.result() == b"later"
        assert await pipe.call("ECHO", "after") == b"after"


async def _later(pipe: RedisPipe) -> Any:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return await pipe.call("ECHO", "later")


async def test_a_caller_that_leaves_does_not_disturb_the_others(pipe: RedisPipe) -> None:
    leaving = asyncio.ensure_future(pipe.call("ECHO", "gone"))
    staying = asyncio.ensure_future(pipe.call("ECHO", "here"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"here"
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await pipe.call("ECHO", "next") == b"next"


async def test_a_connection_that_hangs_while_it_is_opened_is_given_up(redis_server: OwnRedis, tmp_path: Path) -> None:
    # The machine of Redis is gone without a word, and another takes its address.
    async with (
        proxied(redis_server, tmp_path / "proxy.sock", deaf=1) as (client, _),
        piped(client, deadline=0.05) as pipe,
    ):
        with pytest.raises(QuotaOutage):
            await pipe.call("ECHO", "a")
        assert await _until_answered(pipe) == b"again"


async def _until_answered(pipe: RedisPipe) -> Any:
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(QuotaOutage):
                return await pipe.call("ECHO", "again")
            await asyncio.sleep(0.01)


async def test_a_frozen_redis_is_an_outage_at_the_deadline_and_answers_are_not_mixed_up_afterwards(
    own_redis: OwnRedis,
) -> None:
    limit = tokens_a_day(1_000_000)
    async with (
        Redis.from_url(own_redis.url) as redis,
        reserving(redis, deadline=0.05) as hurried,
        reserving(redis) as patient,
    ):
        assert isinstance(await patient.reserve(claim("warm", held(limit), amounts(1))), Reservation)
        await hurried.progress([("org_a", "warm")])
        loop = asyncio.get_running_loop()
        with own_redis.frozen():
            began = loop.time()
            asked = [hurried.reserve(claim(f"late {number}", held(limit), amounts(7))) for number in range(10)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            with pytest.raises(QuotaOutage):
                await hurried.progress([("org_a", "warm")])
            assert loop.time() - began < 2.0
        assert [type(answer) for answer in answers] == [QuotaOutage] * 10
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(QuotaOutage):
                    assert await hurried.progress([("org_a", "warm"), ("org_a", "none")]) == [0, None]
                    break
        fresh = await asyncio.gather(
            *(patient.reserve(claim(f"r{amount}", held(limit), amounts(amount))) for amount in range(100, 120))
        )
        assert [answer.taken for answer in fresh if isinstance(answer, Reservation)] == [
            (amount,) for amount in range(100, 120)
        ]


async def test_a_dead_redis_is_an_outage_and_is_used_again_once_it_is_back(own_redis: OwnRedis) -> None:
    limit = slots(1)
    async with Redis.from_url(own_redis.url) as redis, reserving(redis) as reservations:
        await reservations.reserve(claim("a", held(limit)))
        own_redis.stop()
        asks = (
            reservations.reserve(claim("b", held(limit))),
            reservations.settle(settlement("a")),
            reservations.release("org_a", "a"),
            reservations.renew("org_a", "a", lease_ms=1, progress=progress(1)),
            reservations.progress([("org_a", "a")]),
            reservations.overdue(limit=1),
        )
        for ask in asks:
            with pytest.raises(QuotaOutage):
                await ask
        own_redis.start()
        # Its append-only file knows of the reservation still.
        assert isinstance(await reservations.reserve(claim("b", held(limit))), Exceeded)
        assert await reservations.settle(settlement("a"))


@pytest.mark.parametrize("script", [False, True], ids=["command", "script"])
async def test_a_demoted_server_is_left_and_asked_for_anew(own_redis: OwnRedis, *, script: bool) -> None:
    async with Redis.from_url(own_redis.url) as redis, piped(redis) as pipe:
        before = await pipe.call("CLIENT", "ID")
        await redis.replicaof("127.0.0.1", "1")
        command = ("EVAL", "return redis.call('SET', KEYS[1], '1')", 1, "a") if script else ("SET", "a", "1")
        with pytest.raises(ResponseError):
            await pipe.call(*command)
        assert await pipe.call("CLIENT", "ID") != before


async def test_nobody_listening_at_all_is_an_outage(tmp_path: Path) -> None:
    async with (
        Redis(unix_socket_path=str(tmp_path / "nobody.sock")) as redis,
        reserving(redis, deadline=0.2) as reservations,
    ):
        with pytest.raises(QuotaOutage, match="Redis"):
            await reservations.reserve(claim("a", held(slots(1))))


async def test_what_is_in_flight_when_the_pipe_is_closed_is_an_outage(own_redis: OwnRedis) -> None:
    async with Redis.from_url(own_redis.url) as redis, piped(redis) as pipe:
        await pipe.call("PING")
        with own_redis.frozen():
            asked = [asyncio.ensure_future(pipe.call("ECHO", number)) for number in range(3)]
            for _ in range(5):
                await asyncio.sleep(0)
            await pipe.aclose()
            answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [QuotaOutage] * 3
