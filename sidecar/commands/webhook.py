"""Where are tenants told that their requests have ended? `inference-gateway webhook ...`."""

from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from extproc.lifecycle import State
from sidecar.commands.admin_settings import store_settings
from sidecar.commands.confirmation import Yes, confirm
from sidecar.commands.moment import ago, ahead
from sidecar.commands.option_group import grouped
from sidecar.commands.session import pepper, trail, with_pool
from sidecar.commands.tenant import AsJson
from sidecar.tables import cell, print_fields, print_json, print_table
from store import webhook_deliveries, webhook_replay, webhooks
from store.database import Pool
from store.tenants import find_tenant
from store.webhook_deliveries import Delivery
from store.webhook_replay import Replay, Replayed
from store.webhooks import NewWebhook, NewWebhookSecret, Webhook, WebhookName, WithSecret

app = typer.Typer(no_args_is_help=True, help="Say where tenants are told that their requests have ended.")

Named = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id, as in `webhook list`.")]
_Tenant = typer.Option(metavar="TENANT", help="The tenant's id, or its name when only one has it.")
_SHOWN_ONCE = "The secret is shown once: keep it now."


@dataclass(frozen=True, kw_only=True)
class NewOptions:
    """Whose webhook it is, and what it tells of."""

    tenant: Annotated[str, _Tenant]
    state: Annotated[
        list[State] | None, typer.Option(help="Tell of this end; may be repeated. Without it, of all.")
    ] = None
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = ""


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """What to send again: one of them."""

    request: Annotated[str | None, typer.Option(metavar="ID", help="What is to be told of this request.")] = None
    dead: Annotated[bool, typer.Option("--dead", help="Everything that was given up.")] = False
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Of everything that ended since then: 2h, or a date or time.")
    ] = None


@app.command("create")
@grouped
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to send: https, to a host of the public internet.")],
    wanted: NewOptions,
    *,
    as_json: AsJson = False,
) -> None:
    """Have the ends of a tenant's requests told to a URL, and print the secret, once.

    The secret is what the signatures are made with.
    """
    now = datetime.now(UTC)
    allow_private = store_settings().webhook_allow_private

    async def work(pool: Pool) -> WithSecret:
        owner = await find_tenant(pool, wanted.tenant)
        new = NewWebhook(
            tenant_id=owner.id,
            url=url,
            states=tuple(wanted.state or ()),
            description=wanted.description,
            allow_private=allow_private,
        )
        return await webhooks.create(pool, new, pepper=pepper(), now=now, trail=trail())

    _tell_secret(with_pool(work), as_json=as_json)


@app.command("list")
def list_all(
    *,
    tenant: Annotated[str | None, _Tenant] = None,
    as_json: AsJson = False,
) -> None:
    """List the webhooks, of all tenants or of one."""

    async def work(pool: Pool) -> list[Webhook]:
        tenant_id = None if tenant is None else (await find_tenant(pool, tenant)).id
        return await webhooks.list_webhooks(pool, tenant_id=tenant_id)

    found = with_pool(work)
    if as_json:
        print_json([_described(webhook) for webhook in found])
        return
    print_table(
        ("ID", "TENANT", "STATE", "URL", "CREATED"),
        [(one.id, one.tenant_id, one.state, one.url, one.created_at) for one in found],
        empty="There are no webhooks. Make one: inference-gateway webhook create URL --tenant TENANT",
    )


@app.command("show")
def show(webhook: Named, *, as_json: AsJson = False) -> None:
    """Show a webhook. Its secret is shown when it is made, and never again."""

    async def work(pool: Pool) -> Webhook:
        return await webhooks.find(pool, WebhookName(id=webhook))

    found = with_pool(work)
    if as_json:
        print_json(_described(found))
    else:
        _show(found)


@app.command("deliveries")
def deliveries(
    webhook: Named,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was queued for a webhook last, and what became of it."""

    async def work(pool: Pool) -> list[Delivery]:
        found = await webhooks.find(pool, WebhookName(id=webhook))
        return await webhook_deliveries.recent(pool, found.id, most=limit)

    found = with_pool(work)
    if as_json:
        print_json(found)
        return
    print_table(
        ("REQUEST", "QUEUED", "ATTEMPTS", "NEXT", "DELIVERED", "DEAD", "LAST ANSWER"),
        [
            (one.request_id, one.queued_at, one.attempts, _next(one), one.delivered_at, one.dead_at, _answer(one))
            for one in found
        ],
        empty="Nothing was queued for it in the last days.",
    )


@app.command("rotate-secret")
def rotate_secret(
    webhook: Named,
    *,
    overlap: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the former secret signs too: 24h, 7d, or 0 for not at all.")
    ] = "24h",
    as_json: AsJson = False,
) -> None:
    """Give a webhook another secret, and print it, once.

    Until the overlap ends everything carries two signatures, one of each secret.
    """
    now = datetime.now(UTC)
    goes_on = timedelta(0) if overlap == "0" else ahead("--overlap", overlap, now=now) - now
    new = NewWebhookSecret(webhook=WebhookName(id=webhook), overlap=goes_on)

    async def work(pool: Pool) -> WithSecret:
        return await webhooks.rotate(pool, new, pepper=pepper(), now=now, trail=trail())

    _tell_secret(with_pool(work), as_json=as_json)


@app.command("replay")
@grouped
def replay(webhook: Named, wanted: ReplayOptions, *, as_json: AsJson = False) -> None:
    """Send again what has arrived or was given up.

    It goes under the ids of before, so that a receiver can tell. A disabled webhook is enabled by it.
    """
    now = datetime.now(UTC)
    since = None if wanted.since is None else ago("--since", wanted.since, now=now)

    async def work(pool: Pool) -> Replayed:
        queued, asked = 0, Replay(request_id=wanted.request, dead=wanted.dead, since=since)
        while True:
            done = await webhook_replay.replay(pool, WebhookName(id=webhook), asked, now=now, trail=trail())
            queued += done.queued
            if not done.more:
                return Replayed(queued=queued)
            asked = Replay(dead=wanted.dead, since=done.next_since)

    done = with_pool(work)
    if as_json:
        print_json({"queued": done.queued})
    else:
        typer.echo(f"{cell(done.queued)} are on their way again.")


@app.command("delete")
def delete(webhook: Named, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a webhook: nothing more is sent to it."""
    confirm(f"Deleting the webhook {webhook} cannot be undone. What is on its way to it is dropped.", yes=yes)

    async def work(pool: Pool) -> Webhook:
        return await webhooks.delete(pool, WebhookName(id=webhook), now=datetime.now(UTC), trail=trail())

    gone = with_pool(work)
    if as_json:
        print_json(_described(gone))
    else:
        typer.echo(f"The webhook {gone.id} (of {gone.tenant_id}) is deleted.")


def _tell_secret(made: WithSecret, *, as_json: bool) -> None:
    if as_json:
        print_json({"secret": made.secret, **_described(made.webhook)})
        return
    typer.echo(made.secret)
    typer.echo(f"{_SHOWN_ONCE} The webhook's id is {made.webhook.id}.", err=True)
    if made.webhook.previous_expires_at is not None:
        typer.echo(f"The former secret signs too until {cell(made.webhook.previous_expires_at)}.", err=True)


def _show(webhook: Webhook) -> None:
    print_fields(
        [
            ("id", webhook.id),
            ("tenant", webhook.tenant_id),
            ("url", webhook.url),
            ("tells of", ", ".join(webhook.states) or "all ends"),
            ("description", webhook.description or None),
            ("state", webhook.state),
            ("created", webhook.created_at),
            ("failing since", webhook.failing_since),
            ("disabled", webhook.disabled_at),
            ("former secret until", webhook.previous_expires_at),
        ]
    )


def _described(webhook: Webhook) -> dict[str, object]:
    facts = {field.name: getattr(webhook, field.name) for field in fields(webhook)}
    return {"id": webhook.id, "tenant_id": webhook.tenant_id, "state": webhook.state, **facts}


def _next(delivery: Delivery) -> datetime | None:
    return delivery.next_at if delivery.delivered_at is None and delivery.dead_at is None else None


def _answer(delivery: Delivery) -> str | None:
    return delivery.last_error or (delivery.last_status and f"status {delivery.last_status}") or None
