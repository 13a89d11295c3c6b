"""How is Redis reached? Over one pipe for each purpose of a process, to one server or to a cluster.

REDIS_URL is what redis-py takes: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and options. For a
cluster it may name several servers, with commas: one of them has to be there when the process starts.
"""

import contextlib
import re
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from quota.cluster import Address, ClusterPipe
from quota.pipe import RedisPipe
from quota.reservation import QuotaOutage
from sidecar.settings import Settings

_CONNECT_SECONDS = 1.0
_PORT = 6379
_BETWEEN_URLS = re.compile(r",(?=rediss?://)")  # a password may hold a comma


def pipe(settings: Settings, *, deadline: float) -> RedisPipe | ClusterPipe:
    """A pipe whose calls end within `deadline` seconds. Nothing is connected before it is needed."""
    url = settings.redis_url.get_secret_value()
    return cluster_pipe(url, deadline=deadline) if settings.redis_cluster else server_pipe(url, deadline=deadline)


def server_pipe(url: str, *, deadline: float) -> RedisPipe:
    """A pipe to one server."""
    return RedisPipe(_pool(url).make_connection, deadline=deadline)


def cluster_pipe(urls: str, *, deadline: float) -> ClusterPipe:
    """A pipe to a cluster of which `urls` names some servers. All are reached as the first is: user, password, TLS.

    Raises ValueError for a URL that a cluster cannot have.
    """
    pools = [_pool(url) for url in _BETWEEN_URLS.split(urls)]
    if any("path" in pool.connection_kwargs or pool.connection_kwargs.get("db") for pool in pools):
        raise ValueError("REDIS_URL of a cluster names neither a socket nor a database")
    first = pools[0]

    def connect(address: Address) -> AbstractConnection:
        where = {"host": address.host, "port": address.port}
        return first.connection_class(**{**first.connection_kwargs, **where})

    return ClusterPipe(connect, [_address(pool.connection_kwargs) for pool in pools], deadline=deadline)


async def answers(settings: Settings, *, seconds: float) -> bool:
    """Whether Redis can be asked now; of a cluster, whether one of the servers in the URL can."""
    for url in urls(settings):
        async with contextlib.aclosing(server_pipe(url, deadline=seconds)) as one:
            with contextlib.suppress(QuotaOutage, ResponseError):
                await one.call("PING")
                return True
    return False


def urls(settings: Settings) -> list[str]:
    """The servers that REDIS_URL names, one URL each. They may hold a password."""
    text = settings.redis_url.get_secret_value()
    return _BETWEEN_URLS.split(text) if settings.redis_cluster else [text]


def _pool(url: str) -> ConnectionPool:
    """What makes connections; it holds none. Who waits for one has his own deadline, and tries again himself."""
    return ConnectionPool.from_url(url, socket_connect_timeout=_CONNECT_SECONDS, retry=Retry(NoBackoff(), 0))


def _address(arguments: dict[str, Any]) -> Address:
    return Address(str(arguments.get("host", "localhost")), int(arguments.get("port", _PORT)))
