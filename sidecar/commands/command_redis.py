"""How does a command reach the Redis that the workers count in? As its environment says, or a running `up`."""

import os

from quota.cluster import ClusterPipe
from quota.pipe import RedisPipe
from sidecar.commands.admin_settings import redis_url
from sidecar.redis_client import cluster_pipe, server_pipe

_CLUSTER = "GATEWAY_REDIS_CLUSTER"
_YES = frozenset({"1", "true", "yes", "on"})
UNKNOWN = "REDIS_URL is not set"


def pipe(*, deadline: float) -> RedisPipe | ClusterPipe | None:
    """A pipe whose calls end within `deadline` seconds; None when nobody says where Redis is.

    Raises ValueError for a URL that Redis cannot have.
    """
    url = redis_url()
    if url is None:
        return None
    connect = cluster_pipe if os.environ.get(_CLUSTER, "").lower() in _YES else server_pipe
    return connect(url, deadline=deadline)
