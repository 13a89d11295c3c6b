"""Where does a tenant want to be told that its requests have ended? `/v1/webhooks`."""

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from authz.identity_token import Caller
from authz.refusal import Reason, Refusal
from control.caller import Authenticated
from control.errors import Now, Refused
from control.journal import actor
from control.webhook_body import (
    CreatedWebhook,
    NewWebhookBody,
    ReplayBody,
    ReplayedBody,
    WebhookBody,
    WebhookDetail,
    WebhookList,
)
from store import webhook_deliveries, webhook_replay, webhooks
from store.audit import Trail
from store.database import Pool, within
from store.field_error import FieldError
from store.webhooks import NewWebhook, UnknownWebhook, WebhookName

PATH = "/v1/webhooks"
_ONE = f"{PATH}/{{webhook_id}}"
_RECENT = 20
# Envoy waits 10 s for the whole answer: nothing may be changed for a client that has been told of a timeout.
_PATIENCE_SECONDS = 5.0
# RFC 9111 section 5.2.2.5: one answer holds a secret, all are of this moment.
_NO_STORE = ("cache-control", "no-store")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Where webhooks are kept. `allow_private` lets them go to http and to any host, for tests."""

    pool: Pool
    pepper: bytes = field(repr=False)
    allow_private: bool = False


class WebhookEndpoints:
    """Makes, shows, deletes and replays the webhooks of the caller's tenant. Check lets its administrators in only."""

    def __init__(self, outbox: Outbox, *, now: Now) -> None:
        self._outbox = outbox
        self._now = now

    def router(self) -> APIRouter:
        """The endpoints."""
        router = APIRouter(tags=["webhooks"])
        router.add_api_route(PATH, self.create, methods=["POST"], status_code=201, summary="Make a webhook")
        router.add_api_route(PATH, self.list_all, methods=["GET"], summary="List webhooks")
        router.add_api_route(_ONE, self.show, methods=["GET"], summary="Show a webhook and its latest deliveries")
        router.add_api_route(_ONE, self.delete, methods=["DELETE"], status_code=204, summary="Delete a webhook")
        router.add_api_route(f"{_ONE}/replay", self.replay, methods=["POST"], summary="Send again")
        return router

    async def create(
        self, request: Request, response: Response, caller: Authenticated, body: NewWebhookBody
    ) -> CreatedWebhook:
        """Have every end of a request told to a URL, from now on. The answer holds the secret, this once."""
        response.headers.append(*_NO_STORE)
        new = NewWebhook(
            tenant_id=caller.tenant_id,
            url=body.url,
            states=body.states,
            description=body.description,
            allow_private=self._outbox.allow_private,
        )
        trail = self._trail(request, caller)
        made = await _done(
            webhooks.create(self._outbox.pool, new, pepper=self._outbox.pepper, now=self._now(), trail=trail)
        )
        return CreatedWebhook.made(made.webhook, made.secret)

    async def list_all(self, response: Response, caller: Authenticated) -> WebhookList:
        """The tenant's webhooks, without their secrets."""
        response.headers.append(*_NO_STORE)
        found = await _done(webhooks.list_webhooks(self._outbox.pool, tenant_id=caller.tenant_id))
        return WebhookList(data=[WebhookBody.of(webhook) for webhook in found])

    async def show(self, response: Response, caller: Authenticated, webhook_id: str) -> WebhookDetail:
        """One webhook, and what was queued for it last."""
        response.headers.append(*_NO_STORE)
        webhook = await _done(webhooks.find(self._outbox.pool, _named(caller, webhook_id)))
        found = await _done(webhook_deliveries.recent(self._outbox.pool, webhook.id, most=_RECENT))
        return WebhookDetail.with_deliveries(webhook, found)

    async def delete(self, request: Request, caller: Authenticated, webhook_id: str) -> None:
        """Delete a webhook; what is on its way to it is dropped."""
        name, trail = _named(caller, webhook_id), self._trail(request, caller)
        await _done(webhooks.delete(self._outbox.pool, name, now=self._now(), trail=trail))

    async def replay(self, request: Request, caller: Authenticated, webhook_id: str, body: ReplayBody) -> ReplayedBody:
        """Send again, under the ids of before. A disabled webhook is enabled by it."""
        name, trail = _named(caller, webhook_id), self._trail(request, caller)
        asked = body.asked()
        done = await _done(webhook_replay.replay(self._outbox.pool, name, asked, now=self._now(), trail=trail))
        return ReplayedBody.of(done)

    def _trail(self, request: Request, caller: Caller) -> Trail:
        return Trail(actor(request, caller), pepper=self._outbox.pepper, now=self._now)


def _named(caller: Caller, webhook_id: str) -> WebhookName:
    return WebhookName(id=webhook_id, tenant_id=caller.tenant_id)


async def _done(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of work in the store, in bounded time; what it will not have is a refusal that names the field."""
    try:
        return await within(_PATIENCE_SECONDS, work)
    except UnknownWebhook:
        raise Refused(Refusal(reason=Reason.UNKNOWN_WEBHOOK)) from None
    except FieldError as error:
        message = f"'{error.field}': {error.reason}."
        raise Refused(Refusal(reason=Reason.INVALID_BODY, param=error.field, message=message)) from None
