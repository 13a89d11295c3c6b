"""Webhooks in Postgres: what they may be, whose they are, how their secrets are kept, and what is audited."""

import asyncio
import base64
from datetime import timedelta
from typing import Any

import pytest

from extproc.lifecycle import FINAL, State
from store import tenants, webhook_secret, webhooks
from store.database import Pool
from store.field_error import FieldError
from store.webhooks import MOST_PER_TENANT, NewWebhookSecret, UnknownWebhook, WebhookName, WebhookState
from tests.support.identity_rows import NOON, PEPPER, TRAIL, add_tenant, audited
from tests.support.webhook_rows import made

HOUR = timedelta(hours=1)


def _secret(text: str) -> bytes:
    assert text.startswith("whsec_")
    return base64.b64decode(text.removeprefix("whsec_"), validate=True)


async def test_a_webhook_is_kept_as_it_was_made(pool: Pool) -> None:
    await add_tenant(pool)
    new = await made(pool, states=(State.FAILED, State.COMPLETED, State.FAILED), description="billing")
    found = await webhooks.find(pool, WebhookName(id=new.webhook.id, tenant_id="ten_a"))
    assert found == new.webhook
    assert (found.tenant_id, found.url, found.description) == ("ten_a", "https://hooks.example/in", "billing")
    assert (found.states, found.state) == ((State.COMPLETED, State.FAILED), WebhookState.ACTIVE)
    assert await webhooks.list_webhooks(pool, tenant_id="ten_a") == [found]
    assert await webhooks.list_webhooks(pool, tenant_id="ten_b") == []


async def test_the_secret_is_shown_once_and_not_in_the_database(pool: Pool) -> None:
    await add_tenant(pool)
    new = await made(pool)
    secret = _secret(new.secret)
    assert len(secret) == 32
    row = await pool.fetchrow("SELECT * FROM webhooks")
    assert row is not None
    assert secret not in row["secret"]
    assert webhook_secret.opened(row["secret"], new.webhook.id, PEPPER) == secret
    assert webhook_secret.opened(row["secret"], "wh_another", PEPPER) is None
    assert webhook_secret.opened(row["secret"], new.webhook.id, b"another pepper" * 3) is None
    assert new.secret not in repr(new)
    assert new.secret not in str(await audited(pool))


async def test_the_states_are_those_that_a_row_can_have(pool: Pool) -> None:
    assert set(webhooks.STATES) == FINAL - {State.REJECTED}
    await add_tenant(pool)
    assert (await made(pool, states=webhooks.STATES)).webhook.states == webhooks.STATES


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tenant_id": "ten_nobody"}, "tenant"),
        ({"states": (State.COMPLETED, State.REJECTED)}, "states"),
        ({"states": (State.STREAMING,)}, "states"),
        ({"description": "x" * 201}, "description"),
        ({"description": "a\0b"}, "description"),
        ({"url": "http://hooks.example/in"}, "url"),
    ],
)
async def test_what_cannot_be_is_named(pool: Pool, changes: dict[str, Any], field: str) -> None:
    await add_tenant(pool)
    with pytest.raises(FieldError) as raised:
        await made(pool, **changes)
    assert raised.value.field == field
    assert await audited(pool) == []
    assert await webhooks.list_webhooks(pool) == []


async def test_a_tenant_has_ten_at_most_however_many_are_made_at_once(pool: Pool) -> None:
    await add_tenant(pool)
    outcomes = await asyncio.gather(*(made(pool) for _ in range(MOST_PER_TENANT + 5)), return_exceptions=True)
    assert sum(isinstance(outcome, FieldError) for outcome in outcomes) == 5
    found = await webhooks.list_webhooks(pool, tenant_id="ten_a")
    assert len(found) == MOST_PER_TENANT
    await webhooks.delete(pool, WebhookName(id=found[0].id), now=NOON, trail=TRAIL)
    await made(pool)


@pytest.mark.parametrize("webhook_id", ["wh_00000000000000000000", "nothing", "", "wh_\0"])
async def test_what_is_not_there(pool: Pool, webhook_id: str) -> None:
    with pytest.raises(UnknownWebhook):
        await webhooks.find(pool, WebhookName(id=webhook_id))


async def test_another_tenants_is_not_there(pool: Pool) -> None:
    await add_tenant(pool)
    name = WebhookName(id=(await made(pool)).webhook.id, tenant_id="ten_b")
    rotation = NewWebhookSecret(webhook=name, overlap=HOUR)
    for work in (
        webhooks.find(pool, name),
        webhooks.delete(pool, name, now=NOON, trail=TRAIL),
        webhooks.rotate(pool, rotation, pepper=PEPPER, now=NOON, trail=TRAIL),
    ):
        with pytest.raises(UnknownWebhook):
            await work
    assert len(await webhooks.list_webhooks(pool)) == 1


async def test_rotation_keeps_the_former_secret_until_the_overlap_ends(pool: Pool) -> None:
    await add_tenant(pool)
    first = await made(pool)
    rotation = NewWebhookSecret(webhook=WebhookName(id=first.webhook.id), overlap=HOUR)
    second = await webhooks.rotate(pool, rotation, pepper=PEPPER, now=NOON, trail=TRAIL)
    assert second.secret != first.secret
    assert second.webhook.previous_expires_at == NOON + HOUR
    row = await pool.fetchrow("SELECT * FROM webhooks")
    assert row is not None
    assert webhook_secret.opened(row["previous_secret"], first.webhook.id, PEPPER) == _secret(first.secret)
    at_once = NewWebhookSecret(webhook=rotation.webhook, overlap=timedelta(0))
    third = await webhooks.rotate(pool, at_once, pepper=PEPPER, now=NOON, trail=TRAIL)
    assert third.webhook.previous_expires_at is None
    assert await pool.fetchval("SELECT previous_secret FROM webhooks") is None


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=30, seconds=1)])
async def test_an_overlap_has_bounds(pool: Pool, overlap: timedelta) -> None:
    await add_tenant(pool)
    rotation = NewWebhookSecret(webhook=WebhookName(id=(await made(pool)).webhook.id), overlap=overlap)
    with pytest.raises(FieldError, match="overlap"):
        await webhooks.rotate(pool, rotation, pepper=PEPPER, now=NOON, trail=TRAIL)


async def test_a_deleted_webhook_is_gone_and_its_tenants_end_is_its_end(pool: Pool) -> None:
    await add_tenant(pool)
    first, second = await made(pool), await made(pool)
    await webhooks.delete(pool, WebhookName(id=first.webhook.id), now=NOON, trail=TRAIL)
    assert await webhooks.list_webhooks(pool) == [second.webhook]
    with pytest.raises(UnknownWebhook):
        await webhooks.delete(pool, WebhookName(id=first.webhook.id), now=NOON, trail=TRAIL)
    await tenants.delete(pool, "ten_a", now=NOON, trail=TRAIL)
    assert await webhooks.list_webhooks(pool) == []


async def test_every_change_is_in_the_trail_with_the_host_alone(pool: Pool) -> None:
    await add_tenant(pool)
    new = await made(pool, url="https://hooks.example:8443/T0KEN?key=hidden")
    name = WebhookName(id=new.webhook.id)
    await webhooks.rotate(pool, NewWebhookSecret(webhook=name, overlap=HOUR), pepper=PEPPER, now=NOON, trail=TRAIL)
    assert await webhooks.disable(pool, name, now=NOON, trail=TRAIL)
    assert not await webhooks.disable(pool, name, now=NOON, trail=TRAIL)
    await webhooks.delete(pool, name, now=NOON, trail=TRAIL)
    assert not await webhooks.disable(pool, name, now=NOON, trail=TRAIL)
    rows = await audited(pool)
    assert [row["action"] for row in rows] == [f"webhook.{what}" for what in ("create", "rotate", "disable", "delete")]
    assert {(row["subject"], row["tenant_id"]) for row in rows} == {(f"webhook:{name.id}", "ten_a")}
    assert rows[0]["after"] == {"host": "hooks.example:8443", "states": [], "description": ""}
    assert "T0KEN" not in str(rows)
