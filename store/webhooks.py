"""Who is told when a tenant's requests end? Its webhooks: how they are made, rotated, disabled and deleted.

Every change and its row in the audit trail are one transaction. A deleted webhook's row stays, marked; what was on its
way to it goes (`store/webhook_upkeep.py`).
"""

import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import asyncpg

from extproc.lifecycle import FINAL, State
from store import webhook_secret, webhook_url
from store.audit import Change, Trail
from store.database import Pool, PooledConnection, outages_named
from store.field_error import FieldError
from store.new_id import new_id

MOST_PER_TENANT = 10
LONGEST_DESCRIPTION = 200
LONGEST_OVERLAP = timedelta(days=30)
STATES = tuple(state for state in State if state in FINAL and state is not State.REJECTED)
"""The ends that can be told of, in the order of the table. A refused request has no row in the ledger."""

_ID = re.compile(r"wh_[0-9a-f]{20}")
_COLUMNS = """
w.id, w.tenant_id, w.url, w.states, w.description, w.previous_expires_at, w.created_at, w.failing_since,
w.disabled_at"""
_SELECT = f"SELECT {_COLUMNS} FROM webhooks w WHERE w.deleted_at IS NULL"  # noqa: S608 - made of constants
_NAMED = f"{_SELECT} AND w.id = $1 AND ($2::text IS NULL OR w.tenant_id = $2)"
# Two that make the tenant's last webhook at once wait for each other here.
_LOCK_TENANT = "SELECT id FROM tenants WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE"
_COUNT = "SELECT count(*) FROM webhooks WHERE tenant_id = $1 AND deleted_at IS NULL"
_INSERT = """
INSERT INTO webhooks (id, tenant_id, url, states, description, secret, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)"""
_ROTATE = """
UPDATE webhooks SET secret = $2, previous_expires_at = $3,
       previous_secret = CASE WHEN $3::timestamptz IS NOT NULL THEN secret END WHERE id = $1"""


class WebhookState(StrEnum):
    """Whether a webhook is told anything."""

    ACTIVE = "active"
    FAILING = "failing"  # what was last sent to it did not arrive
    DISABLED = "disabled"  # its endpoint said that it is gone


class UnknownWebhook(FieldError):
    """There is no such webhook, or it is another tenant's."""

    def __init__(self, webhook_id: str) -> None:
        super().__init__("webhook", f"there is no webhook {webhook_id[:80]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookName:
    """Which webhook is meant; of any tenant, when `tenant_id` is None."""

    id: str
    tenant_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhook:
    """Whose it is, where it goes, and which ends it tells of: with no states, all. `allow_private` is for tests."""

    tenant_id: str
    url: str
    states: tuple[State, ...] = ()
    description: str = ""
    allow_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWebhookSecret:
    """A webhook that is to get another secret, and how long what is sent is signed with the former one as well."""

    webhook: WebhookName
    overlap: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What is known of a webhook, its secrets aside. Until `previous_expires_at` the former secret signs too."""

    id: str
    tenant_id: str
    url: str
    states: tuple[State, ...]
    description: str
    previous_expires_at: datetime | None
    created_at: datetime
    failing_since: datetime | None
    disabled_at: datetime | None

    @property
    def state(self) -> WebhookState:
        """Whether it is told anything."""
        if self.disabled_at is not None:
            return WebhookState.DISABLED
        return WebhookState.ACTIVE if self.failing_since is None else WebhookState.FAILING


@dataclass(frozen=True, slots=True)
class WithSecret:
    """A webhook, and its new secret as its tenant gets it: this once."""

    webhook: Webhook
    secret: str = field(repr=False)


async def create(pool: Pool, new: NewWebhook, *, pepper: bytes, now: datetime, trail: Trail) -> WithSecret:
    """Make the webhook: it is told of what ends from now on. Raises `FieldError` for what it cannot be."""
    url = webhook_url.checked(new.url, allow_private=new.allow_private)
    description, states = _described(new.description), _ordered(new.states)
    webhook_id, secret = new_id("wh"), webhook_secret.generate()
    sealed = webhook_secret.sealed(secret, webhook_id, pepper)
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(_LOCK_TENANT, new.tenant_id) is None:
                raise FieldError("tenant", f"there is no tenant {new.tenant_id!r}")
            if await connection.fetchval(_COUNT, new.tenant_id) >= MOST_PER_TENANT:
                raise FieldError("url", f"the tenant has {MOST_PER_TENANT} webhooks, as many as it may; delete one")
            values = (webhook_id, new.tenant_id, url, list(states), description, sealed, now)
            await connection.execute(_INSERT, *values)
            stored = await find_in(connection, WebhookName(id=webhook_id))
            after = {"host": webhook_url.host_of(url), "states": states, "description": description}
            await trail.append(connection, audited("create", stored, after=after))
    return WithSecret(stored, webhook_secret.text_of(secret))


async def find(pool: Pool, name: WebhookName) -> Webhook:
    """Return the webhook; raises `UnknownWebhook`."""
    with outages_named():
        async with pool.acquire() as connection:
            return await find_in(connection, name)


async def list_webhooks(pool: Pool, *, tenant_id: str | None = None) -> list[Webhook]:
    """Return the webhooks of a tenant, or of all, the oldest first."""
    with outages_named():
        rows = await pool.fetch(
            f"{_SELECT} AND ($1::text IS NULL OR w.tenant_id = $1) ORDER BY w.created_at, w.id", tenant_id
        )
    return [_webhook(row) for row in rows]


async def delete(pool: Pool, name: WebhookName, *, now: datetime, trail: Trail) -> Webhook:
    """Delete the webhook, and return what it was; what is on its way to it stops. Raises `UnknownWebhook`."""
    async with locked(pool, name) as (connection, webhook):
        await connection.execute("UPDATE webhooks SET deleted_at = $2 WHERE id = $1", webhook.id, now)
        await trail.append(connection, audited("delete", webhook, after={"deleted_at": now}))
    return webhook


async def rotate(pool: Pool, new: NewWebhookSecret, *, pepper: bytes, now: datetime, trail: Trail) -> WithSecret:
    """Give the webhook another secret. Until the overlap ends everything carries both signatures.

    It has two secrets at most: an overlap that still runs from an earlier rotation ends now. Raises `UnknownWebhook`,
    and `FieldError` when the overlap is not between 0 and `LONGEST_OVERLAP`.
    """
    if not timedelta(0) <= new.overlap <= LONGEST_OVERLAP:
        raise FieldError("overlap", f"must be between 0 and {LONGEST_OVERLAP.days} days")
    until = now + new.overlap if new.overlap else None
    secret = webhook_secret.generate()
    async with locked(pool, new.webhook) as (connection, before):
        await connection.execute(_ROTATE, before.id, webhook_secret.sealed(secret, before.id, pepper), until)
        after = await find_in(connection, new.webhook)
        await trail.append(connection, audited("rotate", after, after={"previous_expires_at": until}))
    return WithSecret(after, webhook_secret.text_of(secret))


async def disable(pool: Pool, name: WebhookName, *, now: datetime, trail: Trail) -> bool:
    """Tell the webhook nothing more; whether that is new. One that is deleted meanwhile is left alone."""
    with contextlib.suppress(UnknownWebhook):
        async with locked(pool, name) as (connection, webhook):
            if webhook.disabled_at is None:
                await connection.execute("UPDATE webhooks SET disabled_at = $2 WHERE id = $1", webhook.id, now)
                await trail.append(connection, audited("disable", webhook, after={"disabled_at": now}))
                return True
    return False


async def enable(connection: PooledConnection, webhook: Webhook, *, trail: Trail) -> None:
    """Let a disabled webhook be told again, in the transaction of a caller who has locked it."""
    if webhook.disabled_at is None:
        return
    await connection.execute("UPDATE webhooks SET disabled_at = NULL, failing_since = NULL WHERE id = $1", webhook.id)
    await trail.append(connection, audited("enable", webhook, before={"disabled_at": webhook.disabled_at}))


@contextlib.asynccontextmanager
async def locked(pool: Pool, name: WebhookName) -> AsyncIterator[tuple[PooledConnection, Webhook]]:
    """A transaction in which nobody else changes the webhook; raises `UnknownWebhook`."""
    with outages_named():
        async with pool.acquire() as connection, connection.transaction():
            # Not FOR UPDATE: that would hold up the ledger, whose new deliveries refer to the webhook.
            yield connection, await find_in(connection, name, lock="FOR NO KEY UPDATE OF w")


async def find_in(connection: PooledConnection, name: WebhookName, *, lock: str = "") -> Webhook:
    """Return the webhook, in a transaction of the caller's; raises `UnknownWebhook`."""
    # What is no id is not asked for: Postgres' text cannot hold all that a path can.
    known = _ID.fullmatch(name.id)
    row = known and await connection.fetchrow(f"{_NAMED} {lock}", name.id, name.tenant_id)
    if row is None:
        raise UnknownWebhook(name.id)
    return _webhook(row)


def audited(
    action: str, webhook: Webhook, *, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
) -> Change:
    """What to write into the audit trail. Of the URL only its host: some have a secret in their path."""
    subject = f"webhook:{webhook.id}"
    return Change(action=f"webhook.{action}", subject=subject, tenant_id=webhook.tenant_id, before=before, after=after)


def _described(description: str) -> str:
    if len(description) > LONGEST_DESCRIPTION or not (description.isprintable() or not description):
        raise FieldError("description", f"must be at most {LONGEST_DESCRIPTION} printable characters")
    return description


def _ordered(states: tuple[State, ...]) -> tuple[State, ...]:
    """The states, once each, in the order of the table."""
    if wrong := [state for state in states if state not in STATES]:
        raise FieldError("states", f"{wrong[0]} is none of {', '.join(STATES)}")
    return tuple(state for state in STATES if state in states)


def _webhook(row: asyncpg.Record) -> Webhook:
    return Webhook(**{**row, "states": tuple(map(State, row["states"]))})
