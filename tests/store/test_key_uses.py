"""When keys were last used: collected, bounded, written in batches, and never back in time."""

import asyncio
from datetime import datetime, timedelta

import pytest

from authz.api_key import generate
from store import api_keys
from store.api_keys import NewKey
from store.database import DatabaseOutage, Pool, open_pool
from store.key_uses import KeyUses, touch
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant

LATER = NOON + timedelta(seconds=1)


async def add_keys(pool: Pool, count: int) -> list[str]:
    tenant = await add_tenant(pool)
    keys = [generate() for _ in range(count)]
    for key in keys:
        await api_keys.create(pool, NewKey(key=key, tenant_id=tenant, name="n"), pepper=PEPPER, trail=TRAIL)
    return [key.id for key in keys]


async def used(pool: Pool) -> dict[str, datetime | None]:
    return {key.id: key.last_used_at for key in await api_keys.list_keys(pool)}


async def test_a_batch_is_written_and_unknown_keys_are_left_out(pool: Pool) -> None:
    one, two, three = await add_keys(pool, 3)
    await touch(pool, {one: NOON, "unknown": NOON, two: LATER})
    assert await used(pool) == {one: NOON, two: LATER, three: None}
    assert (await api_keys.find(pool, two)).last_used_at == LATER


async def test_a_time_does_not_go_back(pool: Pool) -> None:
    [key] = await add_keys(pool, 1)
    for at, last in ((NOON, NOON), (LATER, LATER), (NOON, LATER)):
        await touch(pool, {key: at})
        assert await used(pool) == {key: last}


async def test_nothing_asks_nobody() -> None:
    pool = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    await touch(pool, {})
    await KeyUses().flush(pool)
    await pool.close()


async def test_workers_that_write_the_same_keys_at_once_do_not_wait_for_each_other(pool: Pool) -> None:
    keys = await add_keys(pool, 50)
    await asyncio.gather(
        *(touch(pool, dict.fromkeys(keys if n % 2 else reversed(keys), NOON + timedelta(n))) for n in range(20))
    )
    assert set((await used(pool)).values()) == {NOON + timedelta(19)}


async def test_uses_are_collected_and_written_once(pool: Pool) -> None:
    one, two = await add_keys(pool, 2)
    uses = KeyUses()
    uses.note(one, NOON.timestamp())
    uses.note(two, NOON.timestamp())
    uses.note(one, LATER.timestamp())
    assert len(uses) == 2
    await uses.flush(pool)
    assert len(uses) == 0
    assert await used(pool) == {one: LATER, two: NOON}


async def test_an_outage_keeps_the_uses_for_the_next_flush(pool: Pool) -> None:
    one, two = await add_keys(pool, 2)
    uses = KeyUses()
    uses.note(one, NOON.timestamp())
    out = await open_pool("postgresql://postgres@/gateway?host=/nowhere")
    flush = asyncio.create_task(uses.flush(out))
    await asyncio.sleep(0)
    uses.note(one, LATER.timestamp())
    uses.note(two, NOON.timestamp())
    with pytest.raises(DatabaseOutage):
        await flush
    await out.close()
    await uses.flush(pool)
    assert await used(pool) == {one: LATER, two: NOON}


async def test_no_more_than_the_capacity_is_kept(pool: Pool) -> None:
    one, two = await add_keys(pool, 2)
    uses = KeyUses(capacity=1)
    for key_id, at in ((one, NOON), (two, NOON), (one, LATER)):
        uses.note(key_id, at.timestamp())
    await uses.flush(pool)
    assert await used(pool) == {one: LATER, two: None}
