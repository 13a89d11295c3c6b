"""The outbox: one row for each request and webhook, whoever writes, claimed by one sender at a time, and none lost."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from extproc.lifecycle import Cause, State
from store import ledger, webhook_deliveries, webhook_replay, webhook_upkeep, webhooks
from store.database import Pool
from store.field_error import FieldError
from store.webhook_deliveries import Claimed, Delivery, Failure
from store.webhook_replay import Replay
from store.webhook_upkeep import DISABLED, Backlog
from store.webhooks import NewWebhookSecret, WebhookName, WebhookState
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant, audited
from tests.support.records import DAY, usage_record
from tests.support.records import NOON as NOON_MS
from tests.support.webhook_rows import LEASE, claim, ended, made, queued

SECOND = timedelta(seconds=1)


async def _one(pool: Pool, webhook_id: str) -> Delivery:
    [found] = await webhook_deliveries.recent(pool, webhook_id, most=10)
    return found


async def _failed(pool: Pool, claimed: Claimed, next_at: datetime | None, *, now: datetime = NOON) -> None:
    await webhook_deliveries.failed(pool, claimed, Failure(status=500, error="status 500", next_at=next_at), now=now)


async def test_a_row_of_the_ledger_and_its_deliveries_come_together(pool: Pool) -> None:
    await add_tenant(pool)
    hooks = {(await made(pool)).webhook.id, (await made(pool)).webhook.id}
    batch = [usage_record() for _ in range(50)]
    assert await ledger.write(pool, batch) == 50
    expected = {(hook, record.admission.request_id) for hook in hooks for record in batch}
    assert await queued(pool) == expected
    assert await ledger.write(pool, [*batch, usage_record(tenant_id="ten_b")]) == 1
    assert await queued(pool) == expected, "what is repeated, or of a tenant without webhooks, queues nothing"


async def test_a_row_that_is_not_written_queues_nothing(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    good, bad = usage_record(), usage_record(input_tokens=-1)
    with pytest.raises(ledger.UnwritableRecords):
        await ledger.write(pool, [good, bad])
    assert await queued(pool) == {(hook, good.admission.request_id)}


async def test_writers_that_share_records_queue_each_once(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    batch = [usage_record(received_ms=NOON_MS + (at % 3) * 31 * DAY) for at in range(120)]
    await asyncio.gather(*(ledger.write(pool, order) for order in (batch, batch[::-1], batch[60:] + batch[:60])))
    assert await queued(pool) == {(hook, record.admission.request_id) for record in batch}


async def test_only_what_a_webhook_asked_for_is_queued(pool: Pool) -> None:
    await add_tenant(pool)
    await add_tenant(pool, "ten_b", name="other")
    failures = (await made(pool, states=(State.FAILED, State.TIMED_OUT))).webhook.id
    everything = (await made(pool)).webhook.id
    foreign = (await made(pool, "ten_b")).webhook.id
    gone, disabled = (await made(pool)).webhook.id, (await made(pool)).webhook.id
    await webhooks.delete(pool, WebhookName(id=gone), now=NOON, trail=TRAIL)
    await webhooks.disable(pool, WebhookName(id=disabled), now=NOON, trail=TRAIL)
    good, bad = usage_record(), usage_record(state=State.FAILED, cause=Cause.UPSTREAM_ERROR)
    await ledger.write(pool, [good, bad])
    assert await queued(pool) == {
        (failures, bad.admission.request_id),
        (everything, good.admission.request_id),
        (everything, bad.admission.request_id),
    }
    assert not [row for row in await queued(pool) if row[0] == foreign]


async def test_what_is_claimed_is_nobody_elses_until_the_lease_ends(pool: Pool) -> None:
    await add_tenant(pool)
    new = await made(pool)
    [record] = await ended(pool)
    [first] = await claim(pool)
    assert (first.webhook_id, first.request_id) == (new.webhook.id, record.admission.request_id)
    assert (first.attempts, first.url, len(first.secrets)) == (1, new.webhook.url, 1)
    assert new.webhook.url not in repr(first)
    assert await claim(pool, NOON + LEASE - SECOND) == []
    [second] = await claim(pool, NOON + LEASE)
    assert second.attempts == 2


async def test_of_many_senders_at_once_each_row_has_one(pool: Pool) -> None:
    await add_tenant(pool)
    for _ in range(3):
        await made(pool)
    await ended(pool, 40)
    claims = await asyncio.gather(*(claim(pool, total=25) for _ in range(8)))
    found = Counter((one.webhook_id, one.request_id) for batch in claims for one in batch)
    assert set(found.values()) == {1}
    assert set(found) == await queued(pool)


async def test_one_webhook_with_much_takes_no_room_from_the_others(pool: Pool) -> None:
    await add_tenant(pool)
    loud, quiet = (await made(pool)).webhook.id, (await made(pool, states=(State.FAILED,))).webhook.id
    await ended(pool, 30)
    await ended(pool, 2, state=State.FAILED, cause=Cause.UPSTREAM_ERROR)
    taken = await claim(pool, total=4, each=3)
    assert Counter(one.webhook_id for one in taken) == {loud: 2, quiet: 2}
    assert len(await claim(pool, each=3, flying={loud: 2})) == 1
    assert await claim(pool, each=3, flying={loud: 3}) == []


async def test_of_a_failing_webhook_one_at_a_time_is_sent(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    await ended(pool, 10)
    [first] = await claim(pool, total=1)
    await _failed(pool, first, NOON + SECOND)
    assert (await webhooks.find(pool, WebhookName(id=hook))).state is WebhookState.FAILING
    [second] = await claim(pool)
    assert await claim(pool, flying={hook: 1}) == []
    await webhook_deliveries.delivered(pool, second, status=204, now=NOON)
    assert (await webhooks.find(pool, WebhookName(id=hook))).state is WebhookState.ACTIVE
    assert len(await claim(pool)) == 8


async def test_what_failed_is_due_when_it_was_said_and_what_arrived_never(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    await ended(pool)
    [first] = await claim(pool)
    await _failed(pool, first, NOON + 5 * SECOND)
    shown = await _one(pool, hook)
    assert (shown.attempts, shown.last_status, shown.last_error) == (1, 500, "status 500")
    assert await claim(pool, NOON + 4 * SECOND) == []
    [second] = await claim(pool, NOON + 5 * SECOND)
    await webhook_deliveries.delivered(pool, second, status=204, now=NOON + 6 * SECOND)
    shown = await _one(pool, hook)
    assert (shown.attempts, shown.last_status, shown.last_error) == (2, 204, None)
    assert shown.delivered_at == NOON + 6 * SECOND
    assert await claim(pool, NOON + timedelta(days=1)) == []


async def test_one_who_comes_late_does_not_speak_for_the_next(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    await ended(pool)
    [first] = await claim(pool)
    [second] = await claim(pool, NOON + LEASE)
    await _failed(pool, first, None)
    assert (await _one(pool, hook)).dead_at is None, "the second is still at it"
    await webhook_deliveries.delivered(pool, second, status=200, now=NOON)
    await _failed(pool, second, None)
    assert (await _one(pool, hook)).delivered_at == NOON


async def test_what_a_late_one_has_delivered_is_delivered(pool: Pool) -> None:
    await add_tenant(pool)
    hook = (await made(pool)).webhook.id
    await ended(pool)
    [first] = await claim(pool)
    [second] = await claim(pool, NOON + LEASE)
    await _failed(pool, second, None)
    await webhook_deliveries.delivered(pool, first, status=200, now=NOON)
    shown = await _one(pool, hook)
    assert (shown.delivered_at, shown.dead_at) == (NOON, None)


async def test_both_secrets_are_given_until_the_former_ends(pool: Pool) -> None:
    await add_tenant(pool)
    hook = WebhookName(id=(await made(pool)).webhook.id)
    rotation = NewWebhookSecret(webhook=hook, overlap=LEASE)
    await webhooks.rotate(pool, rotation, pepper=PEPPER, now=NOON, trail=TRAIL)
    await ended(pool)
    [during] = await claim(pool)
    [after] = await claim(pool, NOON + LEASE)
    assert len(during.secrets) == 2
    assert after.secrets == during.secrets[:1]


async def test_a_secret_of_another_pepper_is_none(pool: Pool) -> None:
    await add_tenant(pool)
    await made(pool)
    await ended(pool)
    room = webhook_deliveries.Room(total=1, each=1, flying={})
    [claimed] = await webhook_deliveries.claim(pool, room, now=NOON, until=NOON + LEASE, pepper=b"another pepper" * 3)
    assert claimed.secrets == ()


async def _all_done(pool: Pool, *, dead: bool) -> None:
    for claimed in await claim(pool):
        if dead:
            await _failed(pool, claimed, None)
        else:
            await webhook_deliveries.delivered(pool, claimed, status=200, now=NOON)


@pytest.mark.parametrize("dead", [True, False])
async def test_one_requests_delivery_is_made_again(pool: Pool, *, dead: bool) -> None:
    await add_tenant(pool)
    hook = WebhookName(id=(await made(pool)).webhook.id)
    [record] = await ended(pool)
    request_id = record.admission.request_id
    asked = Replay(request_id=request_id)
    assert (await webhook_replay.replay(pool, hook, asked, now=NOON, trail=TRAIL)).queued == 0, "it is on its way"
    await _all_done(pool, dead=dead)
    later = NOON + timedelta(hours=1)
    assert (await webhook_replay.replay(pool, hook, asked, now=later, trail=TRAIL)).queued == 1
    [again] = await claim(pool, later)
    assert (again.request_id, again.attempts) == (request_id, 1)
    await pool.execute("DELETE FROM webhook_deliveries")  # as upkeep does, days later
    assert (await webhook_replay.replay(pool, hook, asked, now=later, trail=TRAIL)).queued == 1
    assert [row["action"] for row in await audited(pool)][1:] == ["webhook.replay"] * 3


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Replay(request_id="no-uuid"), "request_id"),
        (Replay(request_id="00000000-0000-0000-0000-000000000000"), "request_id"),
        (Replay(since=NOON - timedelta(days=31)), "since"),
        (Replay(), "request_id"),
        (Replay(dead=True, since=NOON), "request_id"),
    ],
)
async def test_what_cannot_be_replayed_is_named(pool: Pool, asked: Replay, field: str) -> None:
    await add_tenant(pool)
    hook = WebhookName(id=(await made(pool)).webhook.id)
    with pytest.raises(FieldError) as raised:
        await webhook_replay.replay(pool, hook, asked, now=NOON, trail=TRAIL)
    assert raised.value.field == field


async def test_another_tenants_request_is_not_replayed(pool: Pool) -> None:
    await add_tenant(pool)
    hook = WebhookName(id=(await made(pool)).webhook.id)
    [foreign] = await ended(pool, tenant_id="ten_b")
    asked = Replay(request_id=foreign.admission.request_id)
    with pytest.raises(FieldError, match="request_id"):
        await webhook_replay.replay(pool, hook, asked, now=NOON, trail=TRAIL)
    since = Replay(since=NOON - timedelta(days=1))
    assert (await webhook_replay.replay(pool, hook, since, now=NOON, trail=TRAIL)).queued == 0


async def test_all_that_ended_since_is_queued_a_piece_at_a_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_replay, "MOST_AT_ONCE", 4)
    await add_tenant(pool)
    batch = [usage_record(ended_ms=NOON_MS + at * 1000) for at in range(10)]
    batch.append(usage_record(ended_ms=NOON_MS, state=State.FAILED, cause=Cause.UPSTREAM_ERROR))
    await ledger.write(pool, batch)
    hook = (await made(pool, states=(State.COMPLETED,))).webhook
    since, count, turns = datetime.fromtimestamp(NOON_MS / 1000 + 2, UTC), 0, 0
    while True:
        asked = Replay(since=since)
        done = await webhook_replay.replay(pool, WebhookName(id=hook.id), asked, now=NOON, trail=TRAIL)
        count, turns = count + done.queued, turns + 1
        if not done.more:
            break
        assert done.next_since is not None
        since = done.next_since
    assert (count, turns) == (8, 3)
    assert await queued(pool) == {(hook.id, record.admission.request_id) for record in batch[2:10]}


async def test_the_dead_are_replayed_and_a_disabled_webhook_is_enabled(pool: Pool) -> None:
    await add_tenant(pool)
    hook = WebhookName(id=(await made(pool)).webhook.id)
    await ended(pool, 3)
    await _all_done(pool, dead=True)
    await webhooks.disable(pool, hook, now=NOON, trail=TRAIL)
    assert await claim(pool) == []
    assert (await webhook_replay.replay(pool, hook, Replay(dead=True), now=NOON, trail=TRAIL)).queued == 3
    assert (await webhooks.find(pool, hook)).state is WebhookState.ACTIVE
    assert len(await claim(pool)) == 3
    assert [row["action"] for row in await audited(pool)][2:] == ["webhook.enable", "webhook.replay"]


async def test_what_is_done_goes_after_its_time_and_what_waits_stays(pool: Pool) -> None:
    await add_tenant(pool)
    await made(pool)
    await ended(pool, 2)
    await _all_done(pool, dead=False)
    await ended(pool, 3)
    await _all_done(pool, dead=True)
    [waits] = await ended(pool)
    at = NOON + webhook_upkeep.KEPT_DELIVERED
    assert (await webhook_upkeep.sweep(pool, at)).deleted == 0
    assert (await webhook_upkeep.sweep(pool, at + SECOND)).deleted == 2
    assert (await webhook_upkeep.sweep(pool, NOON + webhook_upkeep.KEPT_DEAD)).deleted == 0
    assert (await webhook_upkeep.sweep(pool, NOON + webhook_upkeep.KEPT_DEAD + SECOND)).deleted == 3
    assert {request for _, request in await queued(pool)} == {waits.admission.request_id}


async def test_what_was_for_a_deleted_webhook_goes_and_for_a_disabled_one_is_dead(pool: Pool) -> None:
    await add_tenant(pool)
    gone, disabled = (await made(pool)).webhook.id, (await made(pool)).webhook.id
    await ended(pool, 2)
    await webhooks.delete(pool, WebhookName(id=gone), now=NOON, trail=TRAIL)
    await webhooks.disable(pool, WebhookName(id=disabled), now=NOON, trail=TRAIL)
    assert await claim(pool) == []
    swept = await webhook_upkeep.sweep(pool, NOON)
    assert (swept.deleted, swept.dead) == (2, 2)
    found = await webhook_deliveries.recent(pool, disabled, most=10)
    assert {(one.dead_at, one.last_error) for one in found} == {(NOON, DISABLED)}
    assert {hook for hook, _ in await queued(pool)} == {disabled}


async def test_the_backlog_is_counted_from_the_first_that_is_due(pool: Pool) -> None:
    await add_tenant(pool)
    await made(pool)
    assert await webhook_upkeep.backlog(pool, NOON) == Backlog(waiting=0, late_seconds=0.0)
    await ended(pool, 3)
    assert await webhook_upkeep.backlog(pool, NOON + 7 * SECOND) == Backlog(waiting=3, late_seconds=7.0)
    await claim(pool)
    assert await webhook_upkeep.backlog(pool, NOON + SECOND) == Backlog(waiting=3, late_seconds=0.0)
    await pool.execute("UPDATE webhook_deliveries SET delivered_at = $1", NOON)
    assert await webhook_upkeep.backlog(pool, NOON) == Backlog(waiting=0, late_seconds=0.0)
