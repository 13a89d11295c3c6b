"""How is Redis reached? One client a process, that never waits long and reconnects by itself."""

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sidecar.settings import Settings

_CONNECT_SECONDS = 1.0
_CONNECTIONS = 16


def connect(settings: Settings, *, wait_seconds: float) -> Redis:
    """A client whose commands end within `wait_seconds`. Nothing is connected before it is needed.

    One retry: an idle connection may have been closed by the other side. All scripts are idempotent.
    """
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=_CONNECTIONS,
        timeout=wait_seconds,
        socket_timeout=wait_seconds,
        socket_connect_timeout=_CONNECT_SECONDS,
        retry=Retry(NoBackoff(), 1),
    )
    return Redis(connection_pool=pool)
