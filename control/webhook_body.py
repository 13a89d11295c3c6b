"""What do the bodies of `/v1/webhooks` look like? The shapes that are read, written and documented."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from extproc.lifecycle import State
from store.webhook_deliveries import Delivery
from store.webhook_replay import Replay, Replayed
from store.webhook_url import LONGEST
from store.webhooks import LONGEST_DESCRIPTION, STATES, Webhook, WebhookState

_STATES = ", ".join(f"`{state}`" for state in STATES)


class NewWebhookBody(BaseModel):
    """A webhook to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(max_length=LONGEST, description="Where to send: https, to a host of the public internet.")
    states: Annotated[tuple[State, ...], Field(max_length=len(STATES))] = Field(
        default=(), description=f"Which ends to tell of: {_STATES}; all, when left out."
    )
    description: str = Field(default="", max_length=LONGEST_DESCRIPTION, description="What it is for.")


class WebhookBody(BaseModel):
    """A webhook."""

    id: str
    url: str
    states: tuple[State, ...] = Field(description="Which ends it tells of; all, when empty.")
    description: str
    state: WebhookState = Field(
        description="`failing`: what was last sent did not arrive. `disabled`: its endpoint answered 410 and is sent "
        "nothing until a replay."
    )
    created_at: datetime
    failing_since: datetime | None
    disabled_at: datetime | None
    former_secret_until: datetime | None = Field(description="Until then everything is signed with two secrets.")

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """Show a webhook to its tenant."""
        return cls(**_shown(webhook))


class CreatedWebhook(WebhookBody):
    """A webhook that was just made."""

    secret: str = Field(repr=False, description="What its signatures are made with. Shown this once.")

    @classmethod
    def made(cls, webhook: Webhook, secret: str) -> Self:
        """Show a new webhook."""
        return cls(**_shown(webhook), secret=secret)


class WebhookList(BaseModel):
    """The tenant's webhooks, the oldest first."""

    data: list[WebhookBody]


class DeliveryBody(BaseModel):
    """How things stand with what was sent, or is to be sent, of one request."""

    request_id: str
    queued_at: datetime
    attempts: int
    next_at: datetime | None = Field(description="When it is tried next; null when it has arrived or was given up.")
    delivered_at: datetime | None
    dead_at: datetime | None = Field(description="When it was given up. A replay sends it again.")
    last_status: int | None = Field(description="What the endpoint last answered.")
    last_error: str | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Show a delivery to its tenant."""
        waits = delivery.delivered_at is None and delivery.dead_at is None
        return cls(
            request_id=delivery.request_id,
            queued_at=delivery.queued_at,
            attempts=delivery.attempts,
            next_at=delivery.next_at if waits else None,
            delivered_at=delivery.delivered_at,
            dead_at=delivery.dead_at,
            last_status=delivery.last_status,
            last_error=delivery.last_error,
        )


class WebhookDetail(WebhookBody):
    """A webhook, and what was queued for it last."""

    deliveries: list[DeliveryBody] = Field(description="The latest, the newest first.")

    @classmethod
    def with_deliveries(cls, webhook: Webhook, deliveries: Sequence[Delivery]) -> Self:
        """Show a webhook to its tenant."""
        return cls(**_shown(webhook), deliveries=[DeliveryBody.of(delivery) for delivery in deliveries])


class ReplayBody(BaseModel):
    """What to send again: one of the three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_id: str | None = Field(default=None, max_length=100, description="What is to be told of this request.")
    dead: bool = Field(default=False, strict=True, description="Everything that was given up.")
    since: AwareDatetime | None = Field(
        default=None, description="Of everything that ended since then, 30 days ago at most, sent before or not."
    )

    def asked(self) -> Replay:
        """The same, for the store."""
        return Replay(request_id=self.request_id, dead=self.dead, since=self.since)


class ReplayedBody(BaseModel):
    """What a replay has done."""

    queued: int = Field(description="How many are on their way again. What was still on its way is not counted.")
    more: bool = Field(description="Whether there is more than one call queues: ask again.")
    next_since: datetime | None = Field(description="What `since` is to be then.")

    @classmethod
    def of(cls, replayed: Replayed) -> Self:
        """Say what was queued."""
        return cls(queued=replayed.queued, more=replayed.more, next_since=replayed.next_since)


def _shown(webhook: Webhook) -> dict[str, object]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "states": webhook.states,
        "description": webhook.description,
        "state": webhook.state,
        "created_at": webhook.created_at,
        "failing_since": webhook.failing_since,
        "disabled_at": webhook.disabled_at,
        "former_secret_until": webhook.previous_expires_at,
    }
