"""Who is a caller, as the directory knows them, and on which chain of tenant and organization do they stand?

Every kind of credential leads to a `Principal`. What it is looked up by is a `Handle`.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from authz.caps import NO_CAPS, Caps
from authz.scope import Scope
from quota.limit import Limit

LOWEST_PRIORITY, DEFAULT_PRIORITY, HIGHEST_PRIORITY = 0, 5, 9


class PrincipalKind(StrEnum):
    """How a principal proves itself."""

    API_KEY = "api_key"
    JWT = "jwt"
    WORKLOAD = "workload"  # a client certificate
    SESSION = "session"  # the principal of the key or JWT that the session was exchanged for


class Metering(StrEnum):
    """Where a stream's tokens are counted."""

    NATIVE = "native"  # in Envoy; no chunk passes the sidecar
    INLINE = "inline"  # every chunk passes the sidecar


class Handle(NamedTuple):
    """What a principal is looked up by.

    An API key: `name` is its public id. A workload: `name` is the name in its certificate, `spiffe://...` or
    `dns:...`. A JWT's subject: `name` is its principal id (`jwt_...`), and its token says the rest.
    """

    kind: PrincipalKind
    name: str
    tenant_id: str = ""
    plan: str = ""
    """Of a JWT: in place of the tenant's own plan; empty for none."""
    roles: tuple[str, ...] = ()
    """Of a JWT: the names of its roles, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A tenant, the organization above it, and its plan, as they hold for its principals."""

    id: str
    organization_id: str
    organization_suspended: bool
    suspended: bool
    plan: str
    limits: tuple[Limit, ...]
    """The plan's limits, with the tenant's own in place of those of the same name."""
    metering: Metering
    networks: tuple[str, ...] = ()
    """CIDR blocks that its callers must come from; empty for anywhere."""
    certificate_required: bool = False
    """Whether a client certificate of the tenant must accompany every other credential."""
    routing_policy: str | None = None
    """JSON text for the Router."""
    organization_limits: tuple[Limit, ...] = ()
    """What its organization carries, for all its tenants together."""
    time_zone: str = "UTC"
    """IANA name; calendar windows go by it."""
    priority: int = DEFAULT_PRIORITY
    """Its plan's: under overload, plans of a lower one are refused first."""
    caps: Caps = NO_CAPS
    """Its plan's: what one request may come to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A keyed hash (`authz.api_key.keyed_hash`) that a key is known by, and until when; None: as long as the key."""

    hash: bytes = field(repr=False)
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Principal:
    """A caller as stored. Times are aware, in UTC; None means never. Equal only to itself: it is a cache's key.

    `versions` names every row that it was made of, as `table:id`, with the version the row had; 0 for a row that is
    named and does not exist.
    """

    id: str
    kind: PrincipalKind
    tenant: Tenant
    scopes: frozenset[Scope]
    secrets: tuple[Secret, ...] = ()
    suspended: bool = False
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    networks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Models it may name; empty for all. `gpt-*` stands for every model that begins so."""
    limits: tuple[Limit, ...] = ()
    """Its own, beside those of its tenant."""
    versions: tuple[tuple[str, int], ...] = ()
