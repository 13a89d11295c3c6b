"""The counters are what the ledger says: after a flush, after drift, and while requests come and go."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import pytest

from extproc.record import Admission
from quota.charges import NOTHING, Charges
from quota.limit import Unit
from quota.redis import SHARDS, key_of
from quota.reservation import QuotaOutage
from sidecar import comparison, ledger_writer, reconciler
from sidecar.comparison import LedgerBehind
from sidecar.reconciler import Rebuilt, Repaired, Stalled
from store.database import Pool, opened
from store.limits import encode_limits
from tests.quota.own_redis import OwnRedis, running
from tests.sidecar.embedded.processes import until
from tests.sidecar.reconciling import PLENTY, SHARD, Gateway, charges, expected, gateway, seeded
from tests.support.values import sliding

Settled = list[tuple[Admission, Charges]]
MODELS = ("gpt-5", "gpt-mini", "llama:70b")
COUNTER = key_of(SHARD, "counter", "tenant:ten_a/tokens_per_hour")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnRedis]:
    with running() as server:
        yield server


@pytest.fixture
async def running_gateway(
    redis_server: OwnRedis, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    for name, value in {"_WAIT_MS": 1, "_GATHER_SECONDS": 0.0, "_RETRY_SECONDS": 0.01}.items():
        monkeypatch.setattr(ledger_writer, name, value)
    monkeypatch.setattr(comparison, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(reconciler, "_LOOK_SECONDS", 0.01)
    async with gateway(redis_server.url, pool) as found:
        yield found


async def use(gateway: Gateway, count: int, dice: random.Random) -> Settled:
    """Requests of everybody, reserved and settled."""
    done = []
    for _ in range(count):
        one = await gateway.reserve(**anybody(dice))
        done.append((one, charges(dice)))
        assert await gateway.settle(*done[-1])
    return done


def anybody(dice: random.Random) -> dict[str, str]:
    return {
        "tenant_id": dice.choice(("ten_a", "ten_b")),
        "principal_id": dice.choice(("key_k", "jwt_j")),
        "model": dice.choice(MODELS),
    }


@contextlib.asynccontextmanager
async def at_work(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError) and isinstance(outcome, BaseException):
                raise outcome


async def test_a_new_redis_beside_an_empty_ledger_is_whole_at_once(running_gateway: Gateway) -> None:
    await running_gateway.reconciler().step()
    assert await running_gateway.repair.lost() == []
    assert running_gateway.seen[0] == Rebuilt(shards=SHARDS, counters=7, units=0)
    assert await running_gateway.hold() == {}


async def test_after_a_flush_every_counter_is_the_ledgers_to_the_unit(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 40, seeded(4))
    before = await running_gateway.hold()
    await running_gateway.write_all()
    await running_gateway.redis.flushall()
    with pytest.raises(QuotaOutage):
        await running_gateway.reserve()
    await running_gateway.reconciler().step()
    held = await running_gateway.hold()
    assert held == before == await expected(running_gateway.pool, done)
    assert (await running_gateway.check()).drifts == ()
    await running_gateway.settle(await running_gateway.reserve(), NOTHING)
    assert await running_gateway.hold() == held


async def test_a_request_on_another_plan_than_its_tenants_counts_by_that_plan(running_gateway: Gateway) -> None:
    limits = encode_limits([sliding(PLENTY, seconds=7200, unit=Unit.TOKENS, name="tokens_per_7200s")])
    await running_gateway.pool.execute(
        "INSERT INTO plans (name, limits, metering) VALUES ('other', $1::jsonb, 'native')", limits
    )
    await running_gateway.rebuild()
    one = await running_gateway.reserve(principal_id="jwt_j", plan="other")
    await running_gateway.settle(one, Charges(requests=1, tokens=70))
    await running_gateway.write_all()
    held = await running_gateway.hold()
    assert held["tenant:ten_a/tokens_per_7200s"] == (70, 0)
    assert (await running_gateway.check()).drifts == ()
    await running_gateway.redis.flushall()
    await running_gateway.rebuild()
    assert (await running_gateway.hold())["tenant:ten_a/tokens_per_7200s"] == (70, 0)


async def test_a_changed_time_zone_begins_with_what_the_ledger_says_of_its_day(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    await running_gateway.settle(await running_gateway.reserve(), Charges(requests=1, input_tokens=40))
    await running_gateway.write_all()
    before = await running_gateway.hold()
    for zone in ("America/New_York", "Pacific/Kiritimati", "UTC"):
        await running_gateway.pool.execute("UPDATE tenants SET time_zone = $1", zone)
        await running_gateway.check(repair=True)
        held = await running_gateway.fields(key_of(SHARD, "counter", "tenant:ten_a,model:gpt-5/input_tokens_per_day"))
        assert held["sum"] == 40
        assert (await running_gateway.check()).drifts == ()
    assert await running_gateway.hold() == before


async def test_a_change_of_a_tenant_is_compared_soon(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    await running_gateway.redis.hset(COUNTER, mapping={"sum": 5})
    await running_gateway.redis.pexpire(COUNTER, 60_000)
    reconciler = running_gateway.reconciler()
    reconciler.announce("api_keys:k:7")
    await reconciler.step()
    assert not running_gateway.repaired()
    reconciler.announce("tenants:ten_a:8")
    await reconciler.step()
    assert running_gateway.repaired()


async def test_after_a_flush_a_burst_is_not_new(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    one = await running_gateway.reserve()
    await running_gateway.settle(one, Charges(requests=4000))
    await running_gateway.write_all()
    await running_gateway.redis.flushall()
    await running_gateway.rebuild()
    held = await running_gateway.fields(key_of(SHARD, "counter", "tenant:ten_a/requests_per_hour"))
    assert 0 < held["level"] <= 4000 * 3_600_000


async def test_rows_from_before_there_were_charges_count_by_their_tokens(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    await use(running_gateway, 1, seeded(1))
    await running_gateway.write_all()
    await running_gateway.pool.execute("ALTER TABLE inference_requests DISABLE TRIGGER USER")
    await running_gateway.pool.execute(
        "UPDATE inference_requests SET tenant_id = 'ten_a', charged_requests = NULL, charged_input_tokens = NULL, "
        "charged_output_tokens = NULL, charged_tokens = NULL, cost_micros = NULL, settlement = NULL, reserved_at = NULL"
    )
    await running_gateway.redis.flushall()
    await running_gateway.rebuild()
    assert (await running_gateway.hold())["tenant:ten_a/tokens_per_hour"] == (40, 0)


async def test_requests_that_run_over_a_flush_are_charged_once(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    dice = seeded(8)
    writer = running_gateway.writer()
    done = await use(running_gateway, 5, dice)
    running_on = [await running_gateway.reserve(**anybody(dice)) for _ in range(30)]
    await running_gateway.write_all(writer)
    await running_gateway.redis.flushall()

    async def end(some: list[Admission]) -> None:
        for one in some:
            done.append((one, charges(dice)))
            assert await running_gateway.settle(*done[-1])

    # Some end before the counters are whole again, some while they are rebuilt, some after.
    await end(running_on[:10])
    async with at_work(writer.run()):
        await asyncio.gather(running_gateway.reconciler(writer).step(), end(running_on[10:20]))
        await end(running_on[20:])
        await running_gateway.write_all(running_gateway.writer("other"))
        await until_rows(running_gateway, len(done))
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)
    assert (await running_gateway.check()).drifts == ()


async def until_rows(gateway: Gateway, count: int) -> None:
    async with asyncio.timeout(30):
        while await gateway.rows() < count or await gateway.redis.xlen(key_of(SHARD, "events")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_request_settled_twice_because_of_a_flush_is_charged_once(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    [(one, charged)] = await use(running_gateway, 1, seeded(2))
    await running_gateway.write_all()
    await running_gateway.redis.flushall()
    await running_gateway.rebuild()
    assert await running_gateway.settle(one, charged)  # by who had not heard of the first
    await running_gateway.write_all()
    assert await running_gateway.hold() == await expected(running_gateway.pool, [(one, charged)])


async def test_drift_is_found_to_the_unit_and_repaired(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 6, seeded(3))
    await running_gateway.write_all()
    right = await expected(running_gateway.pool, done)
    newest = max(name for name in await running_gateway.redis.hkeys(COUNTER) if name.isdigit())
    await running_gateway.redis.hincrby(COUNTER, newest, 7)
    await running_gateway.redis.hincrby(COUNTER, "sum", 7)
    [drift] = (await running_gateway.check()).drifts
    truth, _ = right["tenant:ten_a/tokens_per_hour"]
    assert (drift.counter, drift.redis, drift.ledger, drift.difference) == (
        "tenant:ten_a/tokens_per_hour",
        truth + 7,
        truth,
        7,
    )
    report = await running_gateway.check(repair=True)
    assert (report.drifts, report.repaired) == ((drift,), True)
    assert running_gateway.seen[-1] == Repaired(drifts=(drift,))
    assert await running_gateway.hold() == right
    assert (await running_gateway.check()).drifts == ()


async def test_a_sum_that_is_not_that_of_its_slices_is_drift_too(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 6, seeded(3))
    await running_gateway.write_all()
    await running_gateway.redis.hincrby(COUNTER, "sum", -5)
    [drift] = (await running_gateway.check(repair=True)).drifts
    assert drift.difference == -5
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)


async def test_a_counter_without_any_use_is_compared_as_well(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    slice_now = await running_gateway.now_ms() // 60_000
    await running_gateway.redis.hset(
        COUNTER, mapping={str(slice_now): 9, "sum": 9, "first": slice_now, "last": slice_now}
    )
    report = await running_gateway.check(repair=True)
    assert [drift.difference for drift in report.drifts] == [9]
    assert (await running_gateway.hold())["tenant:ten_a/tokens_per_hour"] == (0, 0)


async def test_drift_is_repaired_while_requests_come_and_go(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    dice, done, stop = seeded(6), [], asyncio.Event()
    writer = running_gateway.writer()

    async def load(seed: int) -> None:
        own = seeded(seed)
        while not stop.is_set():
            one = await running_gateway.reserve(**anybody(own))
            await asyncio.sleep(own.random() / 100)
            # Now and then Redis has forgotten the request when it ends: it is charged afterwards.
            if own.random() < 0.2:
                await running_gateway.reservations.release(one.organization_id, one.request_id)
            charged = charges(own)
            assert await running_gateway.settle(one, charged)
            done.append((one, charged))

    clients = [asyncio.create_task(load(seed)) for seed in range(8)]
    async with at_work(writer.run()):
        for _ in range(6):
            await asyncio.sleep(0.05)
            assert (await running_gateway.check()).drifts == ()  # none is seen where there is none
            slices = [name for name in await running_gateway.redis.hkeys(COUNTER) if name.isdigit()]
            if slices:
                added = dice.randrange(1, 500)
                # At once: a charge between the two would make the sum anew, with the slice's part in it.
                async with running_gateway.redis.pipeline(transaction=True) as both:
                    both.hincrby(COUNTER, max(slices), added)
                    both.hincrby(COUNTER, "sum", added)
                    await both.execute()
                report = await running_gateway.check(repair=True)
                assert [drift.difference for drift in report.drifts] == [added]
        stop.set()
        await asyncio.gather(*clients)
        await until_rows(running_gateway, len(done))
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)


async def test_steps_done_twice_double_nothing(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 12, seeded(5))
    await running_gateway.write_all()
    await running_gateway.redis.flushall()
    # Killed after its cut, or before it could set the epoch; and another at the same time.
    await running_gateway.repair.cut(SHARD, [])
    await asyncio.gather(*(running_gateway.rebuild() for _ in range(4)))
    await running_gateway.redis.delete(key_of(SHARD, "epoch"))
    await asyncio.gather(*(running_gateway.rebuild() for _ in range(2)))
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)


async def test_two_ledger_writers_with_reconcilers_charge_everything_once(running_gateway: Gateway) -> None:
    dice, done = seeded(7), []
    writers = [running_gateway.writer("one"), running_gateway.writer("two")]
    keepers = [running_gateway.reconciler(writer) for writer in writers]
    async with at_work(*(writer.run() for writer in writers), *(keeper.run() for keeper in keepers)):
        await whole(running_gateway)
        done += await use(running_gateway, 20, dice)
        running_on = [await running_gateway.reserve(**anybody(dice)) for _ in range(20)]
        await until_rows(running_gateway, len(done))
        await running_gateway.redis.flushall()
        for one in running_on:
            done.append((one, charges(dice)))
            assert await running_gateway.settle(*done[-1])
        await whole(running_gateway)
        done += await use(running_gateway, 20, dice)
        await until_rows(running_gateway, len(done))
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)


async def whole(gateway: Gateway) -> None:
    async with asyncio.timeout(30):
        while await gateway.repair.lost():  # noqa: ASYNC110 - it is Redis that says so
            await asyncio.sleep(0.01)


async def test_a_rebuild_waits_until_the_ledger_has_what_was_settled(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 3, seeded(9))
    await running_gateway.redis.delete(key_of(SHARD, "epoch"))
    rebuilding = asyncio.create_task(running_gateway.reconciler().step())
    async with asyncio.timeout(30):
        while not await running_gateway.redis.exists(key_of(SHARD, "repair")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await running_gateway.repair.lost() == [SHARD]
    await running_gateway.write_all()
    await rebuilding
    assert await running_gateway.repair.lost() == []
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)


async def test_without_a_ledger_nothing_is_whole_and_it_heals_when_one_comes(running_gateway: Gateway) -> None:
    async with opened("postgresql://postgres@/gateway?host=/nowhere") as nowhere:
        away = Gateway(running_gateway.redis, running_gateway.pipe, nowhere, seen=running_gateway.seen)
        keeper = away.reconciler()
        async with at_work(keeper.run()):
            await until(lambda: bool(running_gateway.seen))
            assert len(await running_gateway.repair.lost()) == SHARDS
        assert [type(each) for each in running_gateway.seen] == [Stalled]  # told once
    await running_gateway.reconciler().step()
    assert await running_gateway.repair.lost() == []


async def test_a_ledger_that_nobody_writes_is_told(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    await use(running_gateway, 1, seeded(1))
    keeper = reconciler.Reconciler(
        running_gateway.repair,
        comparison.Comparisons(running_gateway.repair, running_gateway.pool, ledger_seconds=0.01),
        running_gateway.pool,
        observe=running_gateway.seen.append,
        now=running_gateway.clock.now,
    )
    with pytest.raises(LedgerBehind, match="has not got all"):
        await keeper.check(repair=False)


async def test_everything_is_compared_soon_after_a_rebuild_and_then_now_and_then(running_gateway: Gateway) -> None:
    keeper = running_gateway.reconciler()
    await keeper.step()
    await use(running_gateway, 2, seeded(1))
    await running_gateway.write_all()
    slices = [name for name in await running_gateway.redis.hkeys(COUNTER) if name.isdigit()]
    for passing in (6, reconciler.EVERY_SECONDS + 1):
        running_gateway.seen.clear()
        await running_gateway.redis.hincrby(COUNTER, slices[0] if slices else "sum", 3)
        await keeper.step()
        assert running_gateway.seen == []
        running_gateway.clock.ms += int(passing * 1000)
        await keeper.step()
        assert [type(each) for each in running_gateway.seen] == [Repaired]


async def test_a_tenant_is_compared_alone_with_what_it_shares(running_gateway: Gateway) -> None:
    await running_gateway.rebuild()
    done = await use(running_gateway, 10, seeded(2))
    await running_gateway.write_all()
    everything = await running_gateway.check()
    alone = await running_gateway.reconciler().check(repair=False, tenant_id="ten_b")
    assert 0 < alone.compared < everything.compared
    for name in ("tenant:ten_a/tokens_per_hour", "organization:org_a/cost_per_month"):
        await running_gateway.redis.hincrby(key_of(SHARD, "counter", name), "sum", 1)
    report = await running_gateway.reconciler().check(repair=True, tenant_id="ten_b")
    assert [drift.counter for drift in report.drifts] == ["organization:org_a/cost_per_month"]
    [of_other] = (await running_gateway.check(repair=True)).drifts
    assert of_other.counter == "tenant:ten_a/tokens_per_hour"
    assert await running_gateway.hold() == await expected(running_gateway.pool, done)
