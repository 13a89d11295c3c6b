"""All that the gateway keeps in Redis, over a Redis Cluster whose slots move and whose servers die and come back."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from redis.crc import key_slot

from authz.principal import Handle, PrincipalKind
from authz.session import Session, SessionToken, generate
from quota.cluster import ClusterPipe, slot_of
from quota.drift import Slice
from quota.estimate import Delta
from quota.redis import SHARDS, RedisReservations, key_of, shard_of
from quota.redis_events import RedisSettledEvents
from quota.redis_log import RedisRequestLog
from quota.redis_repair import Charge, RedisRepair
from quota.redis_signals import RedisSignals
from quota.redis_stops import FOLLOW_DEADLINE_SECONDS, RedisStops
from quota.redis_tally import RedisTally, Tally
from quota.reservation import Exceeded, QuotaOutage, Reservation, SettledEvent
from quota.scripts import load, run
from sidecar.redis_client import cluster_pipe
from store.failures import RedisFailureCounts
from store.sessions import RedisSessions
from tests.quota.own_cluster import ClusterNode, OwnCluster, running_cluster
from tests.support.values import NOON_MS, amounts, claim, held, progress, settlement, sliding, slots, tokens_a_day

PATIENT_SECONDS = 10.0
ORGANIZATIONS = {shard_of(f"org_{number}"): f"org_{number}" for number in range(200)}
OF_7: dict[str, Any] = {"organization_id": ORGANIZATIONS[7]}
SLOT_OF_SHARD = [key_slot(key_of(shard, "").encode()) for shard in range(SHARDS)]
# What has no end of its own is bounded otherwise: an epoch is one short string for each shard, the stream of events
# holds only what the ledger has not acknowledged, and the others some ten thousand entries.
_STREAMS_AND_EPOCHS = (":events", ":epoch", ":log", ":stops")


@pytest.fixture(scope="module")
def running() -> Iterator[OwnCluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: OwnCluster) -> OwnCluster:
    """Empty, and as `running_cluster` made it: each test puts back what it moved."""
    running.flush()
    return running


def _piped(cluster: OwnCluster, *, deadline: float = PATIENT_SECONDS) -> contextlib.aclosing[ClusterPipe]:
    return contextlib.aclosing(cluster_pipe(cluster.url, deadline=deadline))


@pytest.fixture
async def pipe(cluster: OwnCluster) -> AsyncIterator[ClusterPipe]:
    """With all shards' counters whole."""
    async with _piped(cluster) as pipe:
        await asyncio.gather(*(pipe.call("SET", key_of(shard, "epoch"), "1") for shard in range(SHARDS)))
        yield pipe


def _shards_of(cluster: OwnCluster, node: ClusterNode) -> set[int]:
    return {shard for shard in range(SHARDS) if cluster.holder(SLOT_OF_SHARD[shard]) is node}


async def _until(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """Its answer, once it is no outage any more."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(QuotaOutage):
                return await attempt()
            await asyncio.sleep(0.02)


async def _drain(events: RedisSettledEvents) -> list[SettledEvent]:
    found: list[SettledEvent] = []
    while batch := await events.read(count=100, wait_ms=0):
        await events.acknowledge(batch)
        found += batch
    return found


async def test_every_shard_takes_settles_and_tells(pipe: ClusterPipe) -> None:
    reservations, events = RedisReservations(pipe), RedisSettledEvents(pipe, consumer="a")
    limits = held(sliding(1), slots(3), tokens_a_day(1000))
    for shard, organization in ORGANIZATIONS.items():
        whose: dict[str, Any] = {"organization_id": organization}
        asked = [reservations.reserve(claim(f"{shard}.{number}", limits, amounts(7), **whose)) for number in range(5)]
        answers = await asyncio.gather(*asked)
        [taken] = [number for number, answer in enumerate(answers) if isinstance(answer, Reservation)]
        assert {answer.limit.limit.name for answer in answers if isinstance(answer, Exceeded)} == {"sliding"}
        assert await reservations.renew(organization, f"{shard}.{taken}", lease_ms=60_000, progress=progress(4)) == ""
        assert await reservations.progress([(organization, f"{shard}.{taken}")]) == [4]
        settled = [reservations.settle(settlement(f"{shard}.{taken}", amounts(5), **whose)) for _ in range(3)]
        assert sorted(await asyncio.gather(*settled)) == [False, False, True]
        standings = await reservations.standings(organization, limits)
        assert [(standing.used, standing.reserved) for standing in standings] == [(1, 0), (0, 0), (5, 0)]
    assert await events.backlog() == SHARDS
    assert {event.shard for event in await _drain(events)} == set(range(SHARDS))
    assert await events.backlog() == 0


async def test_overdue_requests_of_all_shards_are_found(pipe: ClusterPipe) -> None:
    reservations = RedisReservations(pipe)
    for shard, organization in ORGANIZATIONS.items():
        await reservations.reserve(claim(f"of {shard}", held(slots(1)), organization_id=organization, lease_ms=0))
    found = await reservations.overdue(limit=1000)
    assert {each.request_id for each in found} == {f"of {shard}" for shard in range(SHARDS)}


async def test_the_steps_and_requests_of_all_shards_are_found(pipe: ClusterPipe) -> None:
    reservations, log, tally = RedisReservations(pipe), RedisRequestLog(pipe), RedisTally(pipe)
    events = RedisSettledEvents(pipe, consumer="a")
    places = await log.positions()
    for shard, organization in ORGANIZATIONS.items():
        whose: dict[str, Any] = {
            "organization_id": organization,
            "admission": b'{"request_id":"b","tenant_id":"ten_a"}',
        }
        for name in ("a", "b"):
            asks = claim(name, held(slots(2)), stage="admitted", event=f"{shard}/{name}".encode(), **whose)
            assert isinstance(await reservations.reserve(asks), Reservation)
        ends = progress(stage="completed", event=f"{shard}/ended".encode())
        assert await reservations.settle(settlement("b", amounts(5), progress=ends, **whose))
        assert await reservations.stop(organization, "a", why="revoked")
        assert await reservations.renew(organization, "a", lease_ms=1000, progress=progress(stage="streaming"))
        found = await reservations.open_of(organization, "ten_a", limit=10)
        assert {each.request_id: each.stage for each in found} == {"a": "streaming", "b": "completed"}
    told, after = await log.read(places)
    assert sorted(told) == sorted(f"{shard}/{what}".encode() for shard in ORGANIZATIONS for what in ("a", "b", "ended"))
    assert await log.read(after) == ([], after)
    for event in await _drain(events):
        day = datetime.fromtimestamp(event.sequence // 1_000_000_000, UTC).date()
        assert await tally.of(event.shard, day) == Tally(rows=1, requests=1, tokens=5, cost=0)
        organization = ORGANIZATIONS[event.shard]
        assert await reservations.find(organization, "b") is None
        assert [each.request_id for each in await reservations.open_of(organization, "ten_a", limit=10)] == ["a"]


async def test_a_stop_is_followed_through_the_cluster_and_after_its_shard_has_moved(
    cluster: OwnCluster, pipe: ClusterPipe
) -> None:
    async with _piped(cluster, deadline=FOLLOW_DEADLINE_SECONDS) as own:
        await RedisStops(pipe).ask("before", "revoked")  # the shard has the stream, which can move
        told = RedisStops(own).follow()

        async def following() -> tuple[str, str]:
            async with asyncio.timeout(30):
                return await anext(told)

        waiting = asyncio.ensure_future(following())
        holder = cluster.holder(SLOT_OF_SHARD[0])
        await _until_blocked(holder)
        await RedisStops(pipe).ask("a", "revoked")
        assert await waiting == ("a", "revoked")
        waiting = asyncio.ensure_future(following())
        await _until_blocked(holder)
        with _moving(cluster, 0) as move:
            await asyncio.to_thread(move.carry)
            await asyncio.to_thread(move.end)
            await RedisStops(pipe).ask("b", "revoked")
            assert await waiting == ("b", "revoked")


async def _until_blocked(node: ClusterNode) -> None:
    async with asyncio.timeout(30):
        while not (await asyncio.to_thread(node.ask, "INFO", "clients"))["blocked_clients"]:  # noqa: ASYNC110 - its own
            await asyncio.sleep(0.01)


async def test_sessions_and_failure_counts_are_shared_through_the_cluster(pipe: ClusterPipe) -> None:
    sessions, counts = RedisSessions(pipe, pepper=b"p" * 32), RedisFailureCounts(pipe)
    for number in range(30):
        token, session = _session(f"usr_{number}")
        assert await sessions.create(token, session)
        found = await sessions.find(token)
        assert found is not None
        assert found.id == session.id
        assert [each.id for each in await sessions.list_of(session.principal_id)] == [session.id]
        assert (await counts.add(f"192.0.2.{number}")).failures == 1
        assert (await counts.add(f"192.0.2.{number}")).failures == 2
        assert await sessions.revoke_all(session.principal_id) == 1
        assert await sessions.find(token) is None


def _session(principal_id: str) -> tuple[SessionToken, Session]:
    token = generate(shard_of(principal_id))
    return token, Session(
        id=token.id,
        handle=Handle(PrincipalKind.JWT, principal_id, "ten_a", "pro", ()),
        claimed_scopes=frozenset(),
        principal_id=principal_id,
        tenant_id="ten_a",
        created_ms=NOON_MS,
        expires_ms=NOON_MS + 3_600_000,
        idle_ms=60_000,
        last_used_ms=NOON_MS,
        cookie=False,
        name="",
        source="192.0.2.7",
    )


async def test_every_key_has_a_version_a_hash_tag_and_an_end(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    reservations, sessions = RedisReservations(pipe), RedisSessions(pipe, pepper=b"p" * 32)
    limits = held(sliding(100), slots(100), tokens_a_day(1000))
    for organization in ORGANIZATIONS.values():
        for number in range(3):  # left open, settled, given back
            await reservations.reserve(claim(f"r{number}", limits, organization_id=organization))
        await reservations.settle(settlement("r1", organization_id=organization))
        await reservations.release(organization, "r2")
        await reservations.settle(settlement("lost", organization_id=organization, admission=b"x"))
        await sessions.create(*_session(organization))
        await RedisFailureCounts(pipe).add(organization)
        await _repair(RedisRepair(pipe), organization)
    await RedisSignals(pipe).learn({"model": Delta(lessons=20, bytes=4000, millitokens=1_000_000, answers={3: 20})})
    await RedisSignals(pipe).say_shed("replica", 100)
    await _drain(RedisSettledEvents(pipe, consumer="a"))
    walked = [(key, node.ask("PTTL", key)) for node in cluster.masters for key in node.ask("KEYS", "*")]
    assert len(walked) >= SHARDS * 9
    tags = tuple(f"igw1:{{{shard:02}}}:" for shard in range(SHARDS))
    assert [key for key, _ in walked if not key.startswith(tags)] == []
    assert [key for key, left_ms in walked if left_ms < 0 and not key.endswith(_STREAMS_AND_EPOCHS)] == []
    assert [key for key, left_ms in walked if left_ms > 40 * 86_400_000] == []


async def _repair(repairing: RedisRepair, organization: str) -> None:
    cut = await repairing.cut(shard_of(organization), ["gone"])
    place = Slice(cut.at_ms // 1000, cut.at_ms // 1000 - 60, cut.at_ms, cut.at_ms + 60_000)
    assert await repairing.repair(cut, [], whole=True)
    assert await repairing.charge(organization, "late", [Charge(counter="late", slice=place, amount=3)])


async def test_the_calls_of_one_turn_go_to_each_server_at_once_and_keep_their_order(pipe: ClusterPipe) -> None:
    keys = [key_of(number % SHARDS, "counted") for number in range(320)]
    answers = await asyncio.gather(*(pipe.call("INCR", key) for key in keys))
    assert answers == [1 + number // SHARDS for number in range(320)]


async def test_any_server_will_do_to_begin_with(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    await pipe.call("SET", key_of(7, "x"), "1")
    for node in cluster.nodes:
        async with contextlib.aclosing(cluster_pipe(node.url, deadline=PATIENT_SECONDS)) as one:
            assert await one.call("GET", key_of(7, "x")) == b"1"


async def test_a_server_that_is_not_there_is_passed_over_at_the_beginning(cluster: OwnCluster) -> None:
    urls = f"redis://127.0.0.1:1,{cluster.url}"
    async with contextlib.aclosing(cluster_pipe(urls, deadline=PATIENT_SECONDS)) as one:
        assert await one.call("EXISTS", key_of(7, "x")) == 0


async def test_no_server_at_all_is_an_outage_within_the_deadline() -> None:
    async with contextlib.aclosing(cluster_pipe("redis://127.0.0.1:1", deadline=0.2)) as one:
        async with asyncio.timeout(5):
            for _ in range(3):
                with pytest.raises(QuotaOutage):
                    await one.call("GET", key_of(7, "x"))


async def test_a_command_without_a_key_is_a_bug(pipe: ClusterPipe) -> None:
    with pytest.raises(ValueError, match="names no key"):
        await pipe.call("SCAN", 0)


def test_the_key_of_each_kind_of_command_is_found() -> None:
    key = key_of(7, "x")
    commands: tuple[tuple[str | int, ...], ...] = (
        ("GET", key),
        ("EVALSHA", "sha", 1, key, "argument"),
        ("EVAL", "source", 1, key),
        ("XGROUP", "CREATE", key, "ledger", "0"),
        ("XREADGROUP", "GROUP", "ledger", "a", "COUNT", 1, "STREAMS", key, ">"),
        ("XREAD", "COUNT", 1, "BLOCK", 1000, "STREAMS", key, "0-0"),
    )
    assert {slot_of(command) for command in commands} == {SLOT_OF_SHARD[7]}


@pytest.mark.parametrize("url", ["unix:///tmp/redis.sock", "redis://127.0.0.1:1/3"])
def test_a_socket_or_a_database_is_no_cluster(url: str) -> None:
    with pytest.raises(ValueError, match="REDIS_URL"):
        cluster_pipe(url, deadline=1)


async def test_user_password_and_tls_are_those_of_the_url_on_every_server() -> None:
    one = cluster_pipe("rediss://user:pa,ss@localhost:7000?ssl_cert_reqs=none,rediss://other:7001", deadline=1)
    made = one._pipe(one._start[1])._connect()  # what it would connect to is not there
    assert (made.username, made.password, type(made).__name__) == ("user", "pa,ss", "SSLConnection")
    assert (getattr(made, "host"), getattr(made, "port")) == ("other", 7001)  # noqa: B009 - not of the base class


class _Move:
    """A slot on its way from one server to another, step by step."""

    def __init__(self, cluster: OwnCluster, shard: int) -> None:
        self.slot = SLOT_OF_SHARD[shard]
        self.source = cluster.holder(self.slot)
        self.target = next(node for node in cluster.masters if node is not self.source)
        self.masters = cluster.masters

    def begin(self) -> None:
        self.target.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.source.id)
        self.source.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.target.id)

    def carry(self, *keys: str) -> None:
        for key in keys or self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 1000):
            self.source.ask("MIGRATE", "127.0.0.1", self.target.port, key, 0, 5000)

    def end(self) -> None:
        for node in (self.target, self.source, *self.masters):
            node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id)


@contextlib.contextmanager
def _moving(cluster: OwnCluster, shard: int) -> Iterator[_Move]:
    """A move that is undone at the end."""
    move = _Move(cluster, shard)
    move.begin()
    try:
        yield move
    finally:
        move.carry()
        move.end()
        back = _Move(cluster, shard)
        back.target = move.source
        back.begin()
        back.carry()
        back.end()


async def test_a_key_that_has_left_while_its_slot_moves_is_followed(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    here, gone = key_of(7, "here"), key_of(7, "gone")
    await pipe.call("SET", here, "1")
    await pipe.call("SET", gone, "2")
    with _moving(cluster, 7) as move:
        move.carry(gone)
        for _ in range(2):
            answers = await asyncio.gather(*(pipe.call("GET", key) for key in (here, gone, here, gone)))
            assert answers == [b"1", b"2", b"1", b"2"]
        # A script of one key, that the other server has never heard of.
        assert (await run(pipe, load("failure_count", "store"), [key_of(7, "new")], [60_000]))[0] == 1
        move.carry()
        move.end()
        assert [await pipe.call("GET", key) for key in (here, gone)] == [b"1", b"2"]


async def test_a_reservation_waits_until_its_shard_has_moved(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    # Redis runs no script over keys of which some are there and some here: TRYAGAIN.
    limits = held(sliding(10))
    reservations = RedisReservations(pipe)
    await reservations.reserve(claim("before", limits, **OF_7))
    with _moving(cluster, 7) as move:
        async with _piped(cluster, deadline=0.05) as hurried:
            with pytest.raises(QuotaOutage):
                await RedisReservations(hurried).reserve(claim("hurried", limits, **OF_7))
        waiting = asyncio.ensure_future(reservations.reserve(claim("during", limits, **OF_7)))
        other = await reservations.reserve(claim("other", limits, organization_id=ORGANIZATIONS[6]))
        assert isinstance(other, Reservation), "the other shards go on"
        await asyncio.to_thread(move.carry)
        await asyncio.to_thread(move.end)
        assert isinstance(await waiting, Reservation)
        assert [standing.used for standing in await reservations.standings(ORGANIZATIONS[7], limits)] == [2]


async def test_a_settlement_is_whole_or_not_at_all_while_its_slot_moves(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    limits = held(sliding(10), tokens_a_day(1000), tokens_a_day(900, name="other"), slots(3))
    async with _piped(cluster, deadline=0.3) as hurried:
        reservations, events = RedisReservations(hurried), RedisSettledEvents(pipe, consumer="a")
        assert isinstance(await reservations.reserve(claim("a", limits, amounts(100), **OF_7)), Reservation)
        await _drain(events)
        with _moving(cluster, 7) as move:
            counters = sorted(key for key in move.source.ask("KEYS", "*") if ":counter:" in key)
            for left in (None, *counters):  # more and more of what the script does not name has gone
                if left is not None:
                    move.carry(left)
                with contextlib.suppress(QuotaOutage):
                    await reservations.settle(settlement("a", amounts(30), admission=b"copy", **OF_7))
        assert await _until(lambda: reservations.settle(settlement("a", amounts(30), **OF_7))) in {True, False}
        standings = await reservations.standings(ORGANIZATIONS[7], limits)
        assert [(each.used, each.reserved) for each in standings] == [(1, 0), (30, 0), (30, 0), (0, 0)]
        [event] = await _drain(events)
        assert event.reserved_ms is not None


async def test_a_shard_that_has_moved_is_found_and_its_events_with_it(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    limits = held(sliding(10))
    reservations, events = RedisReservations(pipe), RedisSettledEvents(pipe, consumer="a")
    await reservations.reserve(claim("a", limits, **OF_7))
    await _drain(events)
    with _moving(cluster, 7) as move:
        move.carry()
        move.end()
        assert await reservations.settle(settlement("a", **OF_7))
        assert isinstance(await reservations.reserve(claim("b", limits, **OF_7)), Reservation)
        assert [event.admission for event in await _drain(events)] == [b"admission of a"]


def _times_asked(cluster: OwnCluster, *, but: ClusterNode) -> int:
    """How often the servers were asked who holds what."""
    found = [node.ask("INFO", "commandstats") for node in cluster.nodes if node is not but]
    return sum(stats.get("cmdstat_cluster", {"calls": 0})["calls"] for stats in found)


async def test_a_killed_server_is_an_outage_of_its_shards_alone_and_heals(
    cluster: OwnCluster, pipe: ClusterPipe
) -> None:
    node = cluster.masters[1]
    dead, limits = _shards_of(cluster, node), held(slots(1000))
    events = RedisSettledEvents(pipe, consumer="a")
    async with _piped(cluster, deadline=1.0) as hurried:
        reservations = RedisReservations(hurried)

        async def reserve(shard: int) -> Any:
            return await reservations.reserve(claim(secrets.token_hex(8), limits, organization_id=ORGANIZATIONS[shard]))

        async def settle(shard: int, name: str) -> bool:
            return await reservations.settle(
                settlement(name, organization_id=ORGANIZATIONS[shard], admission=name.encode())
            )

        await asyncio.gather(
            *(reserve(shard) for shard in range(SHARDS)), *(settle(shard, "a") for shard in range(SHARDS))
        )
        await _drain(events)
        node.kill()
        try:
            began, asked = asyncio.get_running_loop().time(), _times_asked(cluster, but=node)
            for _ in range(3):
                answers = await asyncio.gather(*(reserve(shard) for shard in range(SHARDS)), return_exceptions=True)
                assert {shard for shard, answer in enumerate(answers) if isinstance(answer, QuotaOutage)} == dead
                assert sum(isinstance(answer, Reservation) for answer in answers) == SHARDS - len(dead)
            seconds = asyncio.get_running_loop().time() - began
            assert _times_asked(cluster, but=node) - asked <= 2 + seconds / 0.1, "however many calls fail"
            alive = set(range(SHARDS)) - dead
            await asyncio.gather(*(settle(shard, "b") for shard in alive))
            assert {event.shard for event in await _drain(events)} == alive
            assert events.away == dead
            with pytest.raises(QuotaOutage):
                await events.backlog()
        finally:
            await asyncio.to_thread(node.start)
        for shard in dead:
            assert isinstance(await _until(partial(reserve, shard)), Reservation)
            await _until(partial(settle, shard, "c"))
        events.read_again()
        assert {event.shard for event in await _drain(events)} == dead
        assert events.away == frozenset()


async def test_a_frozen_server_keeps_nobody_beyond_the_deadline(cluster: OwnCluster) -> None:
    node = cluster.masters[2]
    frozen = _shards_of(cluster, node)
    async with _piped(cluster, deadline=0.05) as hurried:
        await _until(lambda: asyncio.gather(*(hurried.call("EXISTS", key_of(shard, "x")) for shard in range(SHARDS))))
        with node.frozen():
            began = asyncio.get_running_loop().time()
            asked = [hurried.call("EXISTS", key_of(shard, "x")) for shard in frozen]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(answer) for answer in answers] == [QuotaOutage] * len(frozen)
            assert asyncio.get_running_loop().time() - began < 0.5
        for shard in frozen:
            assert await _until(partial(hurried.call, "EXISTS", key_of(shard, "x"))) == 0


async def test_a_master_that_takes_over_is_found_by_the_next_calls(cluster: OwnCluster, pipe: ClusterPipe) -> None:
    first, replica = cluster.masters[0], cluster.replica
    shard = min(_shards_of(cluster, first))
    await pipe.call("SET", key_of(shard, "x"), "1")
    assert first.ask("WAIT", 1, 5000) == 1
    first.kill()
    try:
        with pytest.raises(QuotaOutage):
            await pipe.call("GET", key_of(shard, "x"))
        replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
        assert await _until(lambda: pipe.call("GET", key_of(shard, "x"))) == b"1"
    finally:
        await asyncio.to_thread(_restore, cluster)
    assert await _until(lambda: pipe.call("GET", key_of(shard, "x"))) == b"1"


def _restore(cluster: OwnCluster) -> None:
    """The first server leads again, and the replica follows it."""
    cluster.masters[0].start()
    cluster.settle()
