"""What may a caller be allowed to do? The closed set of scopes; roles are named sets of them, kept in the store."""

from collections.abc import Iterable
from enum import StrEnum


class Scope(StrEnum):
    """One permission, inside the caller's own tenant."""

    INFERENCE_TEXT = "inference:text"
    INFERENCE_IMAGE = "inference:image"
    INFERENCE_AUDIO = "inference:audio"
    INFERENCE_EMBEDDINGS = "inference:embeddings"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    REQUESTS_READ = "requests:read"
    REQUESTS_CANCEL = "requests:cancel"
    USAGE_READ = "usage:read"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    CLUSTER_READ = "cluster:read"
    CLUSTER_WRITE = "cluster:write"
    ADMIN = "admin"  # holds every other one


_NAMES = frozenset(scope.value for scope in Scope)


def known(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes among these names; what is not a scope is left out (a claim may name those of other services)."""
    return frozenset(Scope(name) for name in names if name in _NAMES)


def holds(held: frozenset[Scope], needed: Scope) -> bool:
    """Whether the needed scope is held, by itself or through `admin`."""
    return needed in held or Scope.ADMIN in held
