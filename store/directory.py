"""Who is this caller, as Postgres knows them?

`PostgresDirectory` keeps the promise of `authz.directory.Directory`: one query a look-up, so that all that a
`Principal` is made of was true at one moment. `store.identity_listener` tells when that has changed.
"""

import json
from collections.abc import Iterable

import asyncpg
import msgspec

from authz.directory import DirectoryOutage
from authz.principal import Handle, Metering, Principal, PrincipalKind, Secret, Tenant
from authz.scope import Scope, known
from store.caps import caps_of
from store.database import DatabaseOutage, Pool, outages_named, within
from store.limits import decode_limits, effective_limits

DEADLINE_SECONDS = 2.0

# The tenant, its organization and its plan. What was deleted has no callers.
_CHAIN = """
       t.id AS tenant_id, t.suspended_at IS NOT NULL AS tenant_suspended, t.limits AS tenant_limits,
       t.networks AS tenant_networks, t.certificate_required, t.routing_policy, t.time_zone,
       t.version AS tenant_version, o.limits AS organization_limits,
       o.id AS organization_id, o.suspended_at IS NOT NULL AS organization_suspended, o.version AS organization_version,
       p.name AS plan, p.limits AS plan_limits, p.metering, p.priority, p.version AS plan_version,
       p.max_stream_seconds, p.max_output_tokens, p.max_response_bytes"""
_ORGANIZATION = "JOIN organizations o ON o.id = t.organization_id AND o.deleted_at IS NULL"
_OWNERS = (
    f"JOIN tenants t ON t.id = x.tenant_id AND t.deleted_at IS NULL {_ORGANIZATION} JOIN plans p ON p.name = t.plan"
)
_OWN = """
       x.suspended_at IS NOT NULL AS suspended, x.version, x.scopes, x.roles, x.models, x.networks, x.limits,
       (SELECT jsonb_agg(jsonb_build_array(r.name, r.version, r.scopes)) FROM roles r WHERE r.name = ANY (x.roles))
           AS roles_found"""
_FIND_KEY = f"""
SELECT x.id, x.hash, x.previous_hash, x.previous_expires_at, x.expires_at, x.revoked_at, {_OWN}, {_CHAIN}
FROM api_keys x {_OWNERS} WHERE x.id = $1"""  # noqa: S608 - constants
_FIND_WORKLOAD = f"""
SELECT x.id, x.certificate_name, {_OWN}, {_CHAIN}
FROM workloads x {_OWNERS} WHERE x.certificate_name = $1"""  # noqa: S608 - constants
# The row's version is told also when it is another tenant's: it is what changes of it are announced with.
_FIND_SUBJECT = f"""
SELECT coalesce(s.suspended_at IS NOT NULL AND s.tenant_id = t.id, false) AS suspended,
       coalesce(s.version, 0) AS version,
       (SELECT jsonb_agg(jsonb_build_array(r.name, r.version, r.scopes)) FROM roles r WHERE r.name = ANY ($4::text[]))
           AS roles_found, {_CHAIN}
FROM tenants t {_ORGANIZATION} JOIN plans p ON p.name = coalesce(nullif($3, ''), t.plan)
LEFT JOIN subjects s ON s.id = $1
WHERE t.id = $2 AND t.deleted_at IS NULL"""  # noqa: S608 - constants

_ROLES = msgspec.json.Decoder(list[tuple[str, int, list[str]]])


class PostgresDirectory:
    """Looks principals up in Postgres. The deadline counts the wait for a free connection too."""

    def __init__(self, pool: Pool, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self._pool = pool
        self._deadline = deadline_seconds

    async def find(self, handle: Handle) -> Principal | None:
        """As `authz.directory.Directory.find`.

        A JWT whose plan does not exist leads to nobody; a role that does not exist adds no scope.
        """
        if not _may_be_stored((handle.name, handle.tenant_id, handle.plan, *handle.roles)):
            return None
        try:
            match handle.kind:
                case PrincipalKind.API_KEY:
                    row = await self._row(_FIND_KEY, handle.name)
                    return None if row is None else _key(row)
                case PrincipalKind.WORKLOAD:
                    row = await self._row(_FIND_WORKLOAD, handle.name)
                    return None if row is None else _workload(row)
                case PrincipalKind.JWT:
                    row = await self._row(_FIND_SUBJECT, handle.name, handle.tenant_id, handle.plan, handle.roles)
                    return None if row is None else _subject(row, handle)
                case PrincipalKind.SESSION:  # is looked up by the handle of the key or JWT behind it
                    return None
        except DatabaseOutage as error:
            raise DirectoryOutage(str(error)) from error
        except msgspec.MsgspecError as error:
            raise DirectoryOutage(f"the limits of {handle.name} or its tenant cannot be read: {error}") from error

    async def _row(self, query: str, *values: object) -> asyncpg.Record | None:
        with outages_named():
            row: asyncpg.Record | None = await within(self._deadline, self._pool.fetchrow(query, *values))
        return row


def _may_be_stored(texts: Iterable[str]) -> bool:
    """Whether Postgres could hold these texts. A claim of a JWT may be any, and a wrong one is no outage."""
    try:
        return all(b"\0" not in text.encode() for text in texts)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _key(row: asyncpg.Record) -> Principal:
    return Principal(
        id=f"key_{row['id']}",
        kind=PrincipalKind.API_KEY,
        tenant=_tenant(row),
        scopes=_scopes(row["scopes"], row),
        secrets=_secrets(row),
        suspended=row["suspended"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        networks=tuple(row["networks"]),
        models=tuple(row["models"]),
        limits=decode_limits(row["limits"]),
        versions=_versions(row, f"api_keys:{row['id']}", row["roles"]),
    )


def _workload(row: asyncpg.Record) -> Principal:
    return Principal(
        id=row["id"],
        kind=PrincipalKind.WORKLOAD,
        tenant=_tenant(row),
        scopes=_scopes(row["scopes"], row),
        suspended=row["suspended"],
        networks=tuple(row["networks"]),
        models=tuple(row["models"]),
        limits=decode_limits(row["limits"]),
        versions=_versions(row, f"workloads:{row['certificate_name']}", row["roles"]),
    )


def _subject(row: asyncpg.Record, handle: Handle) -> Principal:
    return Principal(
        id=handle.name,
        kind=PrincipalKind.JWT,
        tenant=_tenant(row),
        scopes=_scopes((), row),
        suspended=row["suspended"],
        versions=_versions(row, f"subjects:{handle.name}", handle.roles),
    )


def _tenant(row: asyncpg.Record) -> Tenant:
    policy = row["routing_policy"]
    return Tenant(
        id=row["tenant_id"],
        organization_id=row["organization_id"],
        organization_suspended=row["organization_suspended"],
        suspended=row["tenant_suspended"],
        plan=row["plan"],
        limits=effective_limits(decode_limits(row["plan_limits"]), decode_limits(row["tenant_limits"])),
        metering=Metering(row["metering"]),
        networks=tuple(row["tenant_networks"]),
        certificate_required=row["certificate_required"],
        # In ASCII: it becomes the value of a header.
        routing_policy=None if policy is None else json.dumps(json.loads(policy), separators=(",", ":")),
        organization_limits=decode_limits(row["organization_limits"]),
        time_zone=row["time_zone"],
        priority=row["priority"],
        caps=caps_of(row),
    )


def _secrets(row: asyncpg.Record) -> tuple[Secret, ...]:
    current = Secret(hash=row["hash"])
    if row["previous_hash"] is None:
        return (current,)
    return (current, Secret(hash=row["previous_hash"], expires_at=row["previous_expires_at"]))


def _roles(row: asyncpg.Record) -> list[tuple[str, int, list[str]]]:
    """The named roles that exist: name, version and scopes of each."""
    return _ROLES.decode(row["roles_found"] or "[]")


def _scopes(own: Iterable[str], row: asyncpg.Record) -> frozenset[Scope]:
    return known(own).union(*(known(scopes) for _, _, scopes in _roles(row)))


def _versions(row: asyncpg.Record, own: str, roles: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """The rows that a principal was made of, named as the trigger `announce_identity_change` names them."""
    found = {name: version for name, version, _ in _roles(row)}
    return (
        (own, row["version"]),
        (f"tenants:{row['tenant_id']}", row["tenant_version"]),
        (f"organizations:{row['organization_id']}", row["organization_version"]),
        (f"plans:{row['plan']}", row["plan_version"]),
        *((f"roles:{name}", found.get(name, 0)) for name in roles),
    )
