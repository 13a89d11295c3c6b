"""What does Check hand to Process? The Grant: who calls, for which tenant, under which limits.

It travels as text in Envoy's dynamic metadata, which no client can write, and is made and read once per principal:
both sides remember the text of the Grants they have seen.
"""

from functools import lru_cache

import msgspec

from authz.caps import NO_CAPS, Caps
from authz.principal import DEFAULT_PRIORITY, Metering, PrincipalKind
from quota.limit import Limit


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Permission for one principal to make requests, and the limits they run under.

    `principal_id` is the principal's own also when it calls through a session, which `session_id` then names.
    `limits` are the tenant's. `key_id` is empty unless an API key stands behind it. `models` are patterns as in
    `authz.principal.Principal`.
    """

    organization_id: str
    tenant_id: str
    principal_id: str
    principal_kind: PrincipalKind
    plan: str
    limits: tuple[Limit, ...]
    principal_limits: tuple[Limit, ...] = ()
    organization_limits: tuple[Limit, ...] = ()
    time_zone: str = "UTC"
    priority: int = DEFAULT_PRIORITY
    key_id: str = ""
    session_id: str = ""
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    metering: Metering = Metering.NATIVE
    routing_policy: str | None = None
    caps: Caps = NO_CAPS


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Grant)


def encode(grant: Grant) -> str:
    """The Grant as text."""
    return _ENCODER.encode(grant).decode()


@lru_cache(maxsize=10_000)
def decode(text: str) -> Grant:
    """Read a Grant from its text; `msgspec.DecodeError` when it is none."""
    return _DECODER.decode(text)
