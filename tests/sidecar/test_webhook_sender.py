"""The sender, over a real Postgres and real endpoints: everything arrives, signed, whoever is slow, away or killed."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast
from unittest.mock import Mock

import pytest

from extproc.lifecycle_events import decode
from extproc.lifecycle_events import ended as event_of
from sidecar.logs import Logger
from sidecar.public_network import PublicNetwork
from sidecar.webhook_client import WebhookClient
from sidecar.webhook_retries import DELAYS, Answer, Fate
from sidecar.webhook_sender import LEASE, MOST_OF_EACH, Options, Post, Watchers, WebhookSender
from store import webhook_deliveries, webhook_replay, webhooks
from store.database import Pool
from store.webhook_deliveries import Delivery
from store.webhook_replay import Replay
from store.webhook_upkeep import Backlog
from store.webhooks import NewWebhookSecret, WebhookName, WebhookState, WithSecret
from tests.sidecar.embedded.processes import until
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant, audited
from tests.support.webhook_endpoint import Endpoint, Got, listening, status
from tests.support.webhook_rows import claim, ended, made

DAY = timedelta(days=1)


@dataclass(slots=True)
class World:
    """What senders live in: a clock that a test turns, and what they report."""

    pool: Pool
    now: datetime = NOON
    fates: Counter[Fate] = field(default_factory=Counter)
    backlogs: list[Backlog] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    logger: Mock = field(default_factory=Mock)

    def _count(self, fate: Fate, times: int) -> None:
        self.fates[fate] += times

    @contextlib.asynccontextmanager
    async def sending(self, post: Post | None = None, *, ticking: bool = False) -> AsyncIterator["asyncio.Task[None]"]:
        """A sender at work; it is killed at the end, in the middle of whatever it does.

        Its clock stands, unless it is `ticking`: an attempt that a stalled machine spoils is made again then.
        """
        started = time.monotonic()

        def now() -> datetime:
            return self.now + timedelta(seconds=time.monotonic() - started if ticking else 0)

        options = Options(pepper=PEPPER, now=now, random=lambda: 0.5, pause_seconds=0.01)
        watchers = Watchers(
            fate=self._count, backlog=self.backlogs.append, error=self.errors.append, logger=cast("Logger", self.logger)
        )
        network = PublicNetwork(_here, allow_private=True)
        async with WebhookClient(network, connections=100, deadline_seconds=20) as client:
            task = asyncio.create_task(WebhookSender(self.pool, post or client, options, watchers).run())
            try:
                yield task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def deliveries(self, webhook: WithSecret) -> list[Delivery]:
        return await webhook_deliveries.recent(self.pool, webhook.webhook.id, most=1000)

    async def until_done(self, *, dead: int = 0, delivered: int = 0) -> None:
        """Until so many rows of the outbox are done."""
        async with asyncio.timeout(60):
            while True:
                row = await self.pool.fetchrow(
                    "SELECT count(dead_at) AS dead, count(delivered_at) AS delivered FROM webhook_deliveries"
                )
                if row is not None and (row["dead"], row["delivered"]) == (dead, delivered):
                    return
                await asyncio.sleep(0.01)


async def _here(_: str, __: int, /) -> list[str]:
    return ["127.0.0.1"]


@pytest.fixture
async def world(pool: Pool) -> World:
    await add_tenant(pool)
    return World(pool)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with listening() as endpoint:
        yield endpoint


async def _hooked(world: World, endpoint: Endpoint) -> WithSecret:
    return await made(world.pool, url=endpoint.url, allow_private=True)


def _signatures(got: Got) -> set[str]:
    return set(got.headers["webhook-signature"].split(" "))


def _expected(got: Got, secret: str) -> str:
    """The signature as a receiver makes it."""
    content = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.{got.body.decode()}"
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.new(key, content.encode(), hashlib.sha256).digest()).decode()


async def test_what_has_ended_arrives_once_as_the_event_of_its_end_and_signed(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    records = {record.admission.request_id: record for record in await ended(world.pool, 150)}
    async with world.sending():
        await world.until_done(delivered=150)
    assert endpoint.times() == Counter(dict.fromkeys(records, 1))
    assert endpoint.most_at_once <= MOST_OF_EACH
    for got in endpoint.got:
        record = records[got.request_id]
        assert decode(got.body) == event_of(record.admission, record.ending)
        assert got.headers["webhook-id"] == f"{got.request_id}/completed"
        assert got.headers["webhook-timestamp"] == str(int(NOON.timestamp()))
        assert _signatures(got) == {_expected(got, hook.secret)}
    assert world.fates == {Fate.DELIVERED: 150, Fate.DEAD: 0}
    assert not world.errors


async def test_after_a_rotation_both_secrets_sign(world: World, endpoint: Endpoint) -> None:
    first = await _hooked(world, endpoint)
    rotation = NewWebhookSecret(webhook=WebhookName(id=first.webhook.id), overlap=DAY)
    second = await webhooks.rotate(world.pool, rotation, pepper=PEPPER, now=NOON, trail=TRAIL)
    await ended(world.pool)
    async with world.sending():
        await world.until_done(delivered=1)
    [got] = endpoint.got
    assert _signatures(got) == {_expected(got, first.secret), _expected(got, second.secret)}


async def test_what_fails_is_tried_again_under_the_same_id_at_its_time(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    await ended(world.pool)
    endpoint.answers.extend([status(500), status(302, "location: /elsewhere"), status(503, "retry-after: 100")])
    expected = [*DELAYS[:2], DELAYS[2], timedelta(0)]
    async with world.sending():
        for attempt, delay in enumerate(expected, start=1):
            await until(lambda wanted=attempt: world.fates.total() == wanted)  # type: ignore[misc]
            [found] = await world.deliveries(hook)
            assert found.attempts == attempt == len(endpoint.got)
            if delay:
                assert found.next_at == world.now + delay
            world.now = found.next_at
        await world.until_done(delivered=1)
    assert {got.headers["webhook-id"] for got in endpoint.got} == {f"{endpoint.got[0].request_id}/completed"}
    assert len({got.headers["webhook-timestamp"] for got in endpoint.got}) == 4
    assert len({got.body for got in endpoint.got}) == 1


async def test_what_never_arrives_is_dead_after_a_day_and_a_replay_revives_it(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    [record] = await ended(world.pool)
    endpoint.answers.extend([status(500)] * 10)
    async with world.sending():
        for attempt in range(1, 11):
            await until(lambda wanted=attempt: len(endpoint.got) == wanted == world.fates.total())  # type: ignore[misc]
            world.now += DELAYS[-1]
        await world.until_done(dead=1)
        assert world.fates == {Fate.RETRIED: 9, Fate.DEAD: 1}
        [dead] = await world.deliveries(hook)
        assert (dead.attempts, dead.last_status, dead.last_error) == (10, 500, "status 500")
        name = WebhookName(id=hook.webhook.id)
        await webhook_replay.replay(world.pool, name, Replay(dead=True), now=world.now, trail=TRAIL)
        await world.until_done(delivered=1)
    assert endpoint.times() == {record.admission.request_id: 11}


async def test_a_gone_endpoint_disables_its_webhook_and_what_waits_is_dead(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    await ended(world.pool, 20)
    endpoint.answers.extend([status(410)] * 20)
    async with world.sending():
        await until(lambda: Fate.DISABLED in world.fates)
    found = await webhooks.find(world.pool, WebhookName(id=hook.webhook.id))
    assert found.state is WebhookState.DISABLED
    assert len(endpoint.got) <= 2 * MOST_OF_EACH
    async with world.sending():
        world.now += 2 * LEASE
        await world.until_done(dead=20)
    assert len(endpoint.got) <= 2 * MOST_OF_EACH
    disabled = [row for row in await audited(world.pool) if row["action"] == "webhook.disable"]
    assert [row["actor"] for row in disabled] == ["system"]


async def test_an_endpoint_that_hangs_holds_up_no_other(world: World, endpoint: Endpoint) -> None:
    async with listening() as slow:
        slow.hanging = True
        for _ in range(5):
            await _hooked(world, slow)
        await _hooked(world, endpoint)
        await ended(world.pool, 30)
        async with world.sending(ticking=True):
            await world.until_done(delivered=30)
            assert slow.at_once <= 5 * MOST_OF_EACH
    assert set(endpoint.times().values()) == {1}


async def test_a_killed_senders_deliveries_are_made_when_their_lease_ends(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    records = await ended(world.pool, MOST_OF_EACH)
    endpoint.hanging = True
    async with world.sending():
        await until(lambda: endpoint.at_once == MOST_OF_EACH)
    endpoint.hanging = False
    assert len(await world.deliveries(hook)) == MOST_OF_EACH
    assert await claim(world.pool, world.now) == [], "nobody takes them before"
    world.now += LEASE
    async with world.sending():
        await world.until_done(delivered=MOST_OF_EACH)
    assert endpoint.times() == {record.admission.request_id: 2 for record in records}


async def test_of_two_senders_each_delivery_has_one(world: World, endpoint: Endpoint) -> None:
    for _ in range(3):
        await _hooked(world, endpoint)
    records = await ended(world.pool, 60)
    async with world.sending(), world.sending():
        await world.until_done(delivered=180)
    assert endpoint.times() == {record.admission.request_id: 3 for record in records}


async def test_senders_killed_again_and_again_lose_nothing(world: World, endpoint: Endpoint) -> None:
    await _hooked(world, endpoint)
    records = await ended(world.pool, 60)
    for kill in range(1, 5):
        async with world.sending():
            await until(lambda wanted=10 * kill: len(endpoint.got) >= wanted)  # type: ignore[misc]
        world.now += LEASE
    async with world.sending():
        await world.until_done(delivered=60)
    assert set(endpoint.times()) == {record.admission.request_id for record in records}


async def test_what_has_no_row_any_more_is_given_up(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    await world.pool.execute(
        "INSERT INTO webhook_deliveries (webhook_id, request_id, next_at) VALUES ($1, gen_random_uuid(), $2)",
        *(hook.webhook.id, NOON),
    )
    async with world.sending():
        await world.until_done(dead=1)
    [found] = await world.deliveries(hook)
    assert found.last_error == "the ledger has the request no more"
    assert endpoint.got == []


async def test_a_secret_that_cannot_be_opened_signs_nothing(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    await world.pool.execute("UPDATE webhooks SET secret = $1", b"of another pepper, and long enough for it")
    await ended(world.pool)
    async with world.sending():
        await until(lambda: world.fates[Fate.RETRIED] == 1)
    [found] = await world.deliveries(hook)
    assert found.last_error == "the secret was stored with another pepper"
    assert endpoint.got == []


async def test_a_defect_in_one_delivery_does_not_end_the_others(world: World, endpoint: Endpoint) -> None:
    hook = await _hooked(world, endpoint)
    await ended(world.pool, 3)
    calls = 0

    async def post(*_: object) -> Answer:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        return Answer(status=200)

    async with world.sending(post) as task:
        await world.until_done(delivered=2)
        assert not task.done()
    assert [type(error) for error in world.errors] == [ZeroDivisionError]
    assert "the gateway failed to send it" in {found.last_error for found in await world.deliveries(hook)}


async def test_an_outage_of_postgres_is_waited_out(world: World, endpoint: Endpoint) -> None:
    await _hooked(world, endpoint)
    await world.pool.execute("ALTER TABLE webhook_deliveries RENAME TO away")
    async with world.sending() as task:
        await until(lambda: world.logger.warning.called)
        await world.pool.execute("ALTER TABLE away RENAME TO webhook_deliveries")
        await ended(world.pool)
        await world.until_done(delivered=1)
        assert not task.done()


async def test_it_shows_how_much_waits(world: World) -> None:
    await made(world.pool)
    await ended(world.pool, 3)
    world.now += timedelta(seconds=30)

    async def never(*_: object) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    async with world.sending(never):
        await until(lambda: bool(world.backlogs))
    assert world.backlogs[0].waiting == 3
