"""How scripts reach Redis: few round trips, a deadline that holds, and no lasting harm from what Redis may do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.asyncio import Redis

from quota.redis import RedisReservations
from quota.reservation import Exceeded, QuotaOutage, Reservation
from quota.scripts import Script, ScriptRunner, load
from tests.quota.own_redis import OwnRedis
from tests.quota.worlds import PATIENT_SECONDS, used
from tests.support.values import claim, demand, settlement, slots, tokens_a_day

SCRIPTS = ["reserve", "settle", "renew", "overdue"]


@dataclass(slots=True)
class Proxy:
    """A socket in front of Redis. What a client sends at once is one round trip."""

    target: Path
    round_trips: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
async def proxied(server: OwnRedis, path: Path) -> AsyncIterator[tuple[Redis, Proxy]]:
    proxy = Proxy(server.socket)
    listening = await asyncio.start_unix_server(proxy.serve, path)
    async with listening, Redis(unix_socket_path=str(path)) as redis:
        await redis.ping()
        proxy.round_trips = 0
        yield redis, proxy
    await asyncio.gather(*proxy.tasks)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_redis_knows_each_script_by_the_digest_we_compute(redis: Redis, name: str) -> None:
    script = load(name)
    assert (await redis.script_load(script.source)) in {script.sha, script.sha.encode()}


async def test_each_caller_gets_its_own_answer(redis: Redis) -> None:
    echo = await _loaded(redis, "return {KEYS[1], ARGV[1]}")
    runner = ScriptRunner(redis, deadline=PATIENT_SECONDS)
    answers = await asyncio.gather(*(runner.run(echo, [f"k{number}"], [number]) for number in range(100)))
    assert answers == [[f"k{number}".encode(), str(number).encode()] for number in range(100)]


async def test_calls_of_one_turn_of_the_loop_share_a_round_trip(
    redis_server: OwnRedis, redis: Redis, tmp_path: Path
) -> None:
    echo = await _loaded(redis, "return ARGV[1]")
    async with proxied(redis_server, tmp_path / "proxy.sock") as (client, proxy):
        runner = ScriptRunner(client, deadline=PATIENT_SECONDS)
        await asyncio.gather(*(runner.run(echo, [], [number]) for number in range(50)))
        assert proxy.round_trips == 1
        for number in range(5):
            await runner.run(echo, [], [number])
        assert proxy.round_trips == 6


async def test_forgotten_scripts_are_loaded_again_and_every_call_is_answered(redis: Redis) -> None:
    reservations = RedisReservations(redis, deadline=PATIENT_SECONDS)
    for _ in range(2):
        await redis.script_flush()
        limit = slots(1000)
        answers = await asyncio.gather(
            *(reservations.reserve(claim(f"r{number}", demand(limit))) for number in range(20)),
            *(reservations.settle(settlement(f"s{number}", admission=b"x")) for number in range(20)),
        )
        assert all(isinstance(answer, Reservation) for answer in answers[:20])
        assert await used(reservations, limit) == 20


async def test_a_script_that_fails_is_an_outage_for_its_caller_alone(redis: Redis) -> None:
    good, bad = await _loaded(redis, "return 1"), await _loaded(redis, "return redis.call('NONSENSE')")
    runner = ScriptRunner(redis, deadline=PATIENT_SECONDS)
    answers = await asyncio.gather(
        *(runner.run(script, [], []) for script in (good, bad, good)), return_exceptions=True
    )
    assert isinstance(answers.pop(1), QuotaOutage)
    assert answers == [1, 1]


async def test_an_argument_that_cannot_be_sent_harms_nobody_for_ever(redis: Redis) -> None:
    echo = await _loaded(redis, "return ARGV[1]")
    runner = ScriptRunner(redis, deadline=0.5)
    asked = [asyncio.ensure_future(runner.run(echo, [], [text])) for text in ("good", "\ud800")]
    done, waiting = await asyncio.wait(asked, timeout=5)
    for task in waiting:
        task.cancel()
    with contextlib.suppress(Exception):
        await asyncio.gather(*done)
    assert not waiting, "every call ends within the deadline"


async def test_a_caller_that_leaves_does_not_disturb_the_others(redis: Redis) -> None:
    echo = await _loaded(redis, "return ARGV[1]")
    runner = ScriptRunner(redis, deadline=PATIENT_SECONDS)
    leaving = asyncio.ensure_future(runner.run(echo, [], ["gone"]))
    staying = asyncio.ensure_future(runner.run(echo, [], ["here"]))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == b"here"
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_a_frozen_redis_is_an_outage_at_the_deadline_and_answers_are_not_mixed_up_afterwards(
    own_redis: OwnRedis,
) -> None:
    limit = tokens_a_day(1_000_000)
    async with Redis.from_url(own_redis.url) as redis:
        reservations = RedisReservations(redis, deadline=0.05)
        patient = RedisReservations(redis, deadline=PATIENT_SECONDS)
        await patient.reserve(claim("warm", demand(limit, 1)))
        loop = asyncio.get_running_loop()
        with own_redis.frozen():
            began = loop.time()
            asked = [reservations.reserve(claim(f"late {number}", demand(limit, 7))) for number in range(10)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            with pytest.raises(QuotaOutage):
                await reservations.open_among([("org_a", "warm")])
            assert loop.time() - began < 2.0
        assert [type(answer) for answer in answers] == [QuotaOutage] * 10
        fresh = await asyncio.gather(
            *(patient.reserve(claim(f"r{amount}", demand(limit, amount))) for amount in range(100, 120))
        )
        assert [answer.taken for answer in fresh if isinstance(answer, Reservation)] == [
            (amount,) for amount in range(100, 120)
        ]


async def test_a_dead_redis_is_an_outage_and_is_used_again_once_it_is_back(own_redis: OwnRedis) -> None:
    limit = slots(1)
    async with Redis.from_url(own_redis.url) as redis:
        reservations = RedisReservations(redis, deadline=PATIENT_SECONDS)
        await reservations.reserve(claim("a", demand(limit)))
        own_redis.stop()
        asks = (
            reservations.reserve(claim("b", demand(limit))),
            reservations.settle(settlement("a")),
            reservations.release("org_a", "a"),
            reservations.renew("org_a", "a", lease_ms=1, events=1),
            reservations.open_among([("org_a", "a")]),
            reservations.overdue(limit=1),
        )
        for ask in asks:
            with pytest.raises(QuotaOutage):
                await ask
        own_redis.start()
        # Its append-only file knows of the reservation still.
        assert isinstance(await reservations.reserve(claim("b", demand(limit))), Exceeded)
        assert await reservations.settle(settlement("a"))


async def test_nothing_listens_at_all_is_an_outage(tmp_path: Path) -> None:
    async with Redis(unix_socket_path=str(tmp_path / "nobody.sock")) as redis:
        with pytest.raises(QuotaOutage, match="Redis"):
            await RedisReservations(redis, deadline=1).reserve(claim("a"))


async def _loaded(redis: Redis, source: str) -> Script:
    sha = await redis.script_load(source)
    return Script(source, sha.decode() if isinstance(sha, bytes) else sha)
