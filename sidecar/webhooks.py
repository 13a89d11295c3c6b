"""How does a controller send webhooks? The sender, its client and its network, put together from the settings."""

import contextlib
from datetime import UTC, datetime

from sidecar import metrics
from sidecar.logs import Logger
from sidecar.public_network import PublicNetwork, Resolver
from sidecar.settings import Settings
from sidecar.webhook_client import WebhookClient
from sidecar.webhook_sender import MOST_AT_ONCE, Options, Watchers, WebhookSender
from store.database import Pool


async def send(pool: Pool, settings: Settings, logger: Logger) -> None:
    """Send what waits in the outbox until cancelled."""
    options = Options(pepper=settings.key_pepper.get_secret_value().encode(), now=lambda: datetime.now(UTC))
    watchers = Watchers(
        fate=metrics.observe_webhook,
        backlog=metrics.show_webhooks,
        error=metrics.error_observer(lambda error: logger.error("unexpected", action="error", exc_info=error)),
        logger=logger,
    )
    with contextlib.closing(Resolver(threads=MOST_AT_ONCE)) as resolver:
        network = PublicNetwork(resolver, allow_private=settings.webhook_allow_private)
        async with WebhookClient(network, connections=MOST_AT_ONCE) as client:
            await WebhookSender(pool, client, options, watchers).run()
