"""Whose tokens are accepted, and what do their claims mean here? One `Issuer` for each identity provider."""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import msgspec

from authz import json_web_key
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope, known

MAX_LEEWAY_SECONDS = 300
_MAX_TEXT = 255  # OpenID Connect Core section 2: a subject has at most as many characters
_ID_DIGITS = 20


_EXTRAORDINARY = frozenset(
    (Scope.ADMIN, Scope.KEYS_READ, Scope.KEYS_WRITE, Scope.MODELS_WRITE, Scope.CLUSTER_READ, Scope.CLUSTER_WRITE)
)
ORDINARY_SCOPES = tuple(scope.value for scope in Scope if scope not in _EXTRAORDINARY)
"""What a token's claim may give unless the operator says otherwise."""


class Flaw(Enum):
    """What is wrong with a token. For the operator's metrics: the caller is told the same text for all but the last."""

    MALFORMED = "malformed"
    UNKNOWN_ISSUER = "unknown_issuer"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown_key"
    SIGNATURE = "signature"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    CLAIMS = "claims"  # one that is needed is missing, or has not the shape that it must have
    UNKNOWN_TENANT = "unknown_tenant"  # all is right but the tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One identity provider. A `ValueError` that begins with the field's name when it cannot be one.

    `issuer` is the exact `iss`. `keys` is a JWK Set, for one without `jwks_url`. A claim is named by its whole name or,
    inside of others, by a dotted path such as `realm_access.roles`. The tenant is the fixed `tenant`, or the claim's
    value, translated by `tenants` where that is given. Scopes beyond `allowed_scopes` give nothing: names like `admin`
    are common, and may have been meant for another service.
    """

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    jwks_url: str | None = None
    keys: dict[str, Any] | None = field(default=None, repr=False)
    leeway_seconds: int = 30
    tenant: str | None = None
    tenants: dict[str, str] | None = None
    tenant_claim: str = "tenant"
    subject_claim: str = "sub"
    scopes_claim: str = "scope"
    roles_claim: str | None = None
    plan_claim: str | None = None
    allowed_scopes: tuple[str, ...] = ORDINARY_SCOPES

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            fault = check(self)
            if fault:
                raise ValueError(f"{name}: {fault}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedToken:
    """What a right token says. `expires_at` is its `exp`, without leeway."""

    handle: Handle
    scopes: frozenset[Scope]
    issuer: str
    subject: str
    expires_at: datetime


def parse_issuers(text: str) -> tuple[Issuer, ...]:
    """Read the setting GATEWAY_JWT_ISSUERS, a JSON list; `ValueError` naming index and field of what is wrong."""
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError("must be a JSON list of issuers")  # noqa: TRY004 - what is wrong is the setting, not the code
    issuers = tuple(_parse(f"[{at}]", entry) for at, entry in enumerate(found))
    names = [issuer.issuer for issuer in issuers]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise ValueError(f"[{at}].issuer: is the same as that of [{names.index(name)}]")
    return issuers


def principal_id(issuer: str, subject: str, tenant_id: str) -> str:
    """The id under which an issuer's subject is known in a tenant; in each tenant it is a principal of its own."""
    # The lengths keep ("a", "bc") and ("ab", "c") apart.
    whole = f"{len(issuer)}:{issuer}{len(subject)}:{subject}{tenant_id}".encode()
    return f"jwt_{sha256(whole).hexdigest()[:_ID_DIGITS]}"


def read_claims(issuer: Issuer, claims: Mapping[str, Any]) -> VerifiedToken | Flaw:
    """What verified claims mean. `exp` must be a number of seconds that a datetime can hold."""
    subject = _text(_claim(claims, issuer.subject_claim))
    tenant_id = _tenant_id(issuer, claims)
    plan = _plan(issuer, claims)
    scopes = _names(_claim(claims, issuer.scopes_claim))
    roles = _names(_claim(claims, issuer.roles_claim))
    if isinstance(tenant_id, Flaw):
        return tenant_id
    if subject is None or plan is None or scopes is None or roles is None:
        return Flaw.CLAIMS
    name = principal_id(issuer.issuer, subject, tenant_id)
    return VerifiedToken(
        handle=Handle(PrincipalKind.JWT, name, tenant_id, plan, tuple(sorted(roles))),
        scopes=known(scopes & set(issuer.allowed_scopes)),
        issuer=issuer.issuer,
        subject=subject,
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def _parse(place: str, entry: Any) -> Issuer:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: must be a JSON object")  # noqa: TRY004 - as above
    foreign = sorted(entry.keys() - {one.name for one in fields(Issuer)})
    if foreign:
        raise ValueError(f"{place}.{foreign[0]}: there is no such field")
    try:
        return msgspec.convert(entry, Issuer)
    except msgspec.ValidationError as error:
        fault, _, path = str(error).partition(" - at `$")
        # msgspec names the place of a wrong type behind its text; the checks name their field in front.
        where = path.rstrip("`") or f".{fault.partition(':')[0]}"
        raise ValueError(_named(place, fault, where)) from None


def _named(place: str, fault: str, where: str) -> str:
    missing = fault.removeprefix("Object missing required field ")
    if missing != fault:
        return f"{place}.{missing.strip('`')}: must be given"
    return f"{place}{where}: {fault.partition(': ')[2] or fault}"


def _tenant_id(issuer: Issuer, claims: Mapping[str, Any]) -> str | Flaw:
    if issuer.tenant is not None:
        return issuer.tenant
    value = _text(_claim(claims, issuer.tenant_claim))
    if value is None:
        return Flaw.CLAIMS
    return value if issuer.tenants is None else issuer.tenants.get(value, Flaw.UNKNOWN_TENANT)


def _plan(issuer: Issuer, claims: Mapping[str, Any]) -> str | None:
    """The plan; empty for none, None for what cannot be one."""
    value = _claim(claims, issuer.plan_claim)
    return "" if value is None else _text(value)


def _claim(claims: Mapping[str, Any], name: str | None) -> Any:
    """The claim of this whole name (which may be a URL), else the one at this dotted path, else None."""
    if name is None or name in claims:
        return claims.get(name or "")
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str | None:
    """The value if it is a short printable text: what Postgres cannot store is nobody's name."""
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable() else None


def _names(value: Any) -> frozenset[str] | None:
    """The names in a list or in a text with spaces between them; none when there is no value, None when it is wrong."""
    # RFC 6749 section 3.3: U+0020 alone parts them; `str.split()` would take other spaces, too.
    names = [name for name in value.split(" ") if name] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or any(_text(name) is None for name in names):
        return None
    return frozenset(names)


def _audiences_fault(issuer: Issuer) -> str:
    return "" if issuer.audiences and all(issuer.audiences) else "must be at least one, and none empty"


def _algorithms_fault(issuer: Issuer) -> str:
    # RFC 8725 section 3.1: with HS*, whoever can verify can issue; `none` is no signature.
    wrong = [algorithm for algorithm in issuer.algorithms if algorithm not in json_web_key.ALGORITHMS]
    if wrong or not issuer.algorithms:
        return f"must be one or more of {', '.join(json_web_key.ALGORITHMS)}"
    return ""


def _jwks_url_fault(issuer: Issuer) -> str:
    if (issuer.jwks_url is None) is (issuer.keys is None):
        return "must be given, or else keys, and not both"
    return (
        ""
        if issuer.jwks_url is None or _may_be_asked(issuer.jwks_url)
        else ("must begin with https://, or with http:// and a loopback address, and hold no password")
    )


def _may_be_asked(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.password is not None or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _keys_fault(issuer: Issuer) -> str:
    if issuer.keys is None:
        return ""
    try:
        keys = json_web_key.read_object(issuer.keys)
    except ValueError as error:
        return str(error)
    # A key that is left out here would be missed only when its tokens are refused.
    return "" if keys and len(keys) == len(issuer.keys["keys"]) else "holds no key, or one that cannot verify tokens"


def _leeway_fault(issuer: Issuer) -> str:
    return "" if 0 <= issuer.leeway_seconds <= MAX_LEEWAY_SECONDS else f"must be 0 to {MAX_LEEWAY_SECONDS}"


def _tenants_fault(issuer: Issuer) -> str:
    if issuer.tenants is None:
        return ""
    if issuer.tenant is not None:
        return "must not be given together with tenant"
    return "" if all(_text(tenant_id) for tenant_id in issuer.tenants.values()) else "must lead to ids of tenants"


def _allowed_scopes_fault(issuer: Issuer) -> str:
    wrong = [name for name in issuer.allowed_scopes if not known((name,))]
    return f"{wrong[0]!r} is no scope" if wrong else ""


def _text_fault(name: str) -> Callable[[Issuer], str]:
    def fault(issuer: Issuer) -> str:
        value = getattr(issuer, name)
        return "" if value is None or _text(value) else f"must be 1 to {_MAX_TEXT} printable characters"

    return fault


_TEXTS = ("issuer", "tenant", "tenant_claim", "subject_claim", "scopes_claim", "roles_claim", "plan_claim")
_CHECKS: dict[str, Callable[[Issuer], str]] = {
    **{name: _text_fault(name) for name in _TEXTS},
    "audiences": _audiences_fault,
    "algorithms": _algorithms_fault,
    "jwks_url": _jwks_url_fault,
    "keys": _keys_fault,
    "leeway_seconds": _leeway_fault,
    "tenants": _tenants_fault,
    "allowed_scopes": _allowed_scopes_fault,
}
