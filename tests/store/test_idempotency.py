"""Idempotency keys in Postgres: who claims one holds it, alone, until it is freed, taken over or has expired."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from extproc.idempotency import Answer, Earlier, IdempotencyOutage, KeyedRequest
from extproc.lifecycle import Cause, State
from store import idempotency, ledger
from store.database import DatabaseOutage, Pool, open_pool
from store.idempotency import PostgresIdempotencyKeys
from tests.support.records import usage_record

DAY = timedelta(hours=24)
ANSWER = Answer(status=201, content_type="application/json; charset=utf-8", body=b'{"\x00":"\xff"}')


def request(**changes: Any) -> KeyedRequest:
    whole = {
        "tenant_id": "ten_a",
        "principal_id": "key_k",
        "key": "k",
        "request_id": str(uuid4()),
        "fingerprint": b"f" * 32,
    }
    return KeyedRequest(**{**whole, **changes})


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs on one busy machine; what is shown is outcome, not speed."""
    monkeypatch.setattr(idempotency, "_SECONDS", 20.0)


@pytest.fixture
def keys(pool: Pool) -> PostgresIdempotencyKeys:
    return PostgresIdempotencyKeys(pool, lifetime=DAY)


async def age(pool: Pool, seconds: float) -> None:
    """Let the time pass for all keys."""
    await pool.execute(
        "UPDATE idempotency_keys SET claimed_at = claimed_at - $1::interval, expires_at = expires_at - $1::interval",
        timedelta(seconds=seconds),
    )


async def holder(keys: PostgresIdempotencyKeys) -> Earlier:
    found = await keys.claim(request())
    assert found is not None
    return found


async def test_who_claims_a_key_holds_it(keys: PostgresIdempotencyKeys) -> None:
    first = request(fingerprint=b"1" * 32)
    assert await keys.claim(first) is None
    earlier = await holder(keys)
    assert (earlier.request_id, earlier.fingerprint, earlier.answer) == (first.request_id, b"1" * 32, None)
    assert 0 <= earlier.age_ms < 60_000


async def test_the_same_request_may_ask_again(keys: PostgresIdempotencyKeys) -> None:
    first = request()
    assert [await keys.claim(first) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize("other", [{"tenant_id": "ten_b"}, {"principal_id": "key_z"}, {"key": "K"}])
async def test_keys_of_others_are_other_keys(keys: PostgresIdempotencyKeys, other: dict[str, str]) -> None:
    assert await keys.claim(request()) is None
    assert await keys.claim(request(**other)) is None


async def test_of_fifty_at_once_one_claims_and_the_others_know_whom(keys: PostgresIdempotencyKeys) -> None:
    requests = [request() for _ in range(50)]
    found = await asyncio.gather(*map(keys.claim, requests))
    [winner] = [request.request_id for request, earlier in zip(requests, found, strict=True) if earlier is None]
    assert {earlier.request_id for earlier in found if earlier} == {winner}


async def test_of_fifty_at_once_one_takes_over(keys: PostgresIdempotencyKeys) -> None:
    first, retries = request(), [request() for _ in range(50)]
    await keys.claim(first)
    taken = await asyncio.gather(*(keys.take_over(retry, first.request_id) for retry in retries))
    [winner] = [retry.request_id for retry, won in zip(retries, taken, strict=True) if won]
    assert (await holder(keys)).request_id == winner


async def test_who_takes_over_begins_anew(keys: PostgresIdempotencyKeys, pool: Pool) -> None:
    first, second = request(), request()
    await keys.claim(first)
    await age(pool, DAY.total_seconds() - 60)
    assert (await holder(keys)).age_ms > 3_600_000
    assert await keys.take_over(second, first.request_id)
    await age(pool, 120)
    assert (await holder(keys)).request_id == second.request_id


async def test_a_key_is_freed_by_its_holder_alone(keys: PostgresIdempotencyKeys) -> None:
    first, other = request(), request()
    await keys.claim(first)
    await keys.free(other)
    assert (await holder(keys)).request_id == first.request_id
    await keys.free(first)
    assert await keys.claim(other) is None


async def test_an_admission_is_noted_for_its_holder_alone(keys: PostgresIdempotencyKeys) -> None:
    first, second = request(), request()
    await keys.claim(first)
    await keys.admitted(second)
    assert not (await holder(keys)).admitted
    await keys.admitted(first)
    assert (await holder(keys)).admitted
    await keys.take_over(second, first.request_id)
    assert not (await holder(keys)).admitted


async def test_an_answer_is_kept_to_the_byte(keys: PostgresIdempotencyKeys) -> None:
    first = request()
    await keys.claim(first)
    assert await keys.record(first, ANSWER)
    assert (await holder(keys)).answer == ANSWER


async def test_an_answer_stays_whatever_comes_after_it(keys: PostgresIdempotencyKeys) -> None:
    first = request()
    await keys.claim(first)
    await keys.record(first, ANSWER)
    await keys.free(first)
    assert not await keys.take_over(request(), first.request_id)
    assert (await holder(keys)).answer == ANSWER


async def test_who_has_lost_the_key_records_nothing(keys: PostgresIdempotencyKeys) -> None:
    first, second = request(), request()
    await keys.claim(first)
    await keys.take_over(second, first.request_id)
    assert not await keys.record(first, ANSWER)
    assert (await holder(keys)).answer is None


async def test_what_has_expired_counts_for_nothing_and_is_deleted(keys: PostgresIdempotencyKeys, pool: Pool) -> None:
    first, second = request(), request(fingerprint=b"2" * 32)
    await keys.claim(first)
    await keys.admitted(first)
    await keys.record(first, ANSWER)
    await keys.claim(request(key="other"))
    await age(pool, DAY.total_seconds() + 1)
    assert await keys.claim(second) is None
    earlier = await holder(keys)
    assert (earlier.request_id, earlier.fingerprint, earlier.answer) == (second.request_id, b"2" * 32, None)
    assert not earlier.admitted
    assert earlier.age_ms < 60_000
    assert await idempotency.delete_expired(pool) == 1
    assert await pool.fetchval("SELECT array_agg(key) FROM idempotency_keys") == ["k"]


async def test_all_that_has_expired_is_deleted_in_batches(
    keys: PostgresIdempotencyKeys, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "_BATCH", 2)
    for number in range(5):
        await keys.claim(request(key=str(number)))
    await age(pool, DAY.total_seconds() + 1)
    await keys.claim(request(key="new"))
    assert [await idempotency.delete_expired(pool) for _ in range(2)] == [5, 0]
    assert await pool.fetchval("SELECT count(*) FROM idempotency_keys") == 1


async def test_the_ledger_says_how_a_request_ended(keys: PostgresIdempotencyKeys, pool: Pool) -> None:
    ended = usage_record(state=State.CANCELLED, cause=Cause.CLIENT_DISCONNECT)
    await ledger.write(pool, [ended])
    assert await keys.ended(ended.admission.request_id) is State.CANCELLED
    assert await keys.ended(str(uuid4())) is None


async def test_an_outage_says_so() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    keys = PostgresIdempotencyKeys(pool, lifetime=DAY)
    one = request()
    for asked in (
        keys.claim(one),
        keys.take_over(one, "x"),
        keys.admitted(one),
        keys.free(one),
        keys.record(one, ANSWER),
        keys.ended(one.request_id),
    ):
        with pytest.raises(IdempotencyOutage):
            await asked
    with pytest.raises(DatabaseOutage):
        await idempotency.delete_expired(pool)
    await pool.close()


async def test_a_database_that_hangs_is_not_waited_for(
    keys: PostgresIdempotencyKeys, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keys.claim(request())
    monkeypatch.setattr(idempotency, "_SECONDS", 0.05)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE idempotency_keys")
        with pytest.raises(IdempotencyOutage):
            await keys.claim(request())
