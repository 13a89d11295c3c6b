"""How does the Router know, without asking, on whose behalf a request comes? By a token that the gateway signed.

A JWT (RFC 7519) with an Ed25519 signature (EdDSA, RFC 8037). `authz/key_ring.py` has the keys, docs/identity-token.md
what a Router must know.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt
import msgspec

from authz.grant import Grant
from authz.key_ring import KeyRing
from authz.principal import Handle, PrincipalKind
from authz.scope import Scope, known

IDENTITY_HEADER = "x-gateway-identity"
ADDRESS_HEADER = "x-gateway-client-address"
"""Beside the token for the control API: where the caller's connection comes from."""
ISSUER = "inference-gateway"
ROUTER_AUDIENCE = "inference-router"
CONTROL_AUDIENCE = "inference-gateway-control"
LIFETIME_SECONDS = 60
_CAPACITY = 10_000
_ALGORITHM = "EdDSA"
# Between the clocks of two of our own machines.
_SKEW_SECONDS = 5
_REQUIRED = ["iss", "aud", "sub", "iat", "nbf", "exp"]
# The times are compared with the time that is given, below.
_OPTIONS: Any = {"require": _REQUIRED, "verify_exp": False, "verify_nbf": False, "verify_iat": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedToken:
    """A token, and when to ask for the next one: in seconds since the epoch, half its lifetime before it expires."""

    text: str = field(repr=False)
    renew_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls the control API, as Check found them. `session_id` is empty unless they came by a session.

    `handle` is what they can be looked up by again, `claimed_scopes` the scopes that their own JWT named.
    """

    organization_id: str
    tenant_id: str
    principal_id: str
    principal_kind: PrincipalKind
    plan: str
    scopes: frozenset[Scope]
    session_id: str
    handle: Handle
    claimed_scopes: frozenset[Scope]


class _Subject(NamedTuple):
    """All that the claims are made of: callers of whom it is the same share a token."""

    audience: str
    grant: tuple[str, str, str, str, str, tuple[str, ...], str]
    handle: Handle | None = None
    claimed_scopes: frozenset[Scope] = frozenset()


class _Made(NamedTuple):
    token: SignedToken
    key_id: str


class _Claims(msgspec.Struct, frozen=True):
    """What `read_caller` needs of a token for the control API."""

    sub: str
    org: str
    tenant: str
    kind: PrincipalKind
    plan: str
    scope: str
    handle: Handle
    claimed_scopes: str
    sid: str = ""


class IdentityTokens:
    """Makes tokens, at most one for a principal and half a lifetime; `now` is in seconds since the epoch.

    Remembers those of the last 10,000 principals. There are none without a ring, or while none of its keys signs.
    """

    def __init__(self, *, now: Callable[[], float], lifetime_seconds: int = LIFETIME_SECONDS) -> None:
        self._now = now
        self._lifetime = lifetime_seconds
        self._ring = KeyRing()
        self._made: OrderedDict[_Subject, _Made] = OrderedDict()

    def use(self, ring: KeyRing) -> None:
        """Sign with these keys from now on; tokens of a key that is published no more are not handed out again."""
        self._ring = ring
        published = {key.id for key in ring.published(_moment(self._now()))}
        for subject in [subject for subject, made in self._made.items() if made.key_id not in published]:
            del self._made[subject]

    def for_router(self, grant: Grant) -> SignedToken | None:
        """The token that goes to the Router with a request; None while there is no key."""
        return self._token(_Subject(ROUTER_AUDIENCE, _told(grant)))

    def for_control(self, grant: Grant, handle: Handle, claimed_scopes: frozenset[Scope]) -> SignedToken | None:
        """The token that goes to the control API; None while there is no key."""
        return self._token(_Subject(CONTROL_AUDIENCE, _told(grant), handle, claimed_scopes))

    def _token(self, subject: _Subject) -> SignedToken | None:
        now = self._now()
        made = self._made.get(subject)
        if made is not None and now < made.token.renew_at:
            self._made.move_to_end(subject)
            return made.token
        made = self._sign(subject, now)
        if made is None:
            return None
        self._made[subject] = made
        self._made.move_to_end(subject)
        if len(self._made) > _CAPACITY:
            self._made.popitem(last=False)
        return made.token

    def _sign(self, subject: _Subject, now: float) -> _Made | None:
        key = self._ring.signer(_moment(now))
        if key is None:
            return None
        issued = int(now)
        times = {"iat": issued, "nbf": issued, "exp": issued + self._lifetime}
        text = jwt.encode(_claims(subject) | times, key.private, algorithm=_ALGORITHM, headers={"kid": key.id})
        return _Made(SignedToken(text=text, renew_at=issued + self._lifetime / 2), key.id)


def verified(text: str, ring: KeyRing, *, audience: str, now: datetime) -> Mapping[str, Any] | None:
    """The claims of a token that a published key signed for this audience and that holds at this time."""
    try:
        key = ring.find(jwt.get_unverified_header(text).get("kid"), now)
        if key is None:
            return None
        claims: dict[str, Any] = jwt.decode(
            text, key.public, algorithms=[_ALGORITHM], audience=audience, issuer=ISSUER, options=_OPTIONS
        )
        current = claims["nbf"] - _SKEW_SECONDS <= now.timestamp() < claims["exp"]
    except (jwt.InvalidTokenError, TypeError):  # TypeError: a time that is no number
        return None
    return claims if current else None


def read_caller(text: str, ring: KeyRing, now: datetime) -> Caller | None:
    """Who calls the control API; None when the token is not one of ours for it, or has expired."""
    found = verified(text, ring, audience=CONTROL_AUDIENCE, now=now)
    try:
        claims = None if found is None else msgspec.convert(found, _Claims)
    except msgspec.ValidationError:  # of another release of the gateway
        return None
    if claims is None:
        return None
    return Caller(
        organization_id=claims.org,
        tenant_id=claims.tenant,
        principal_id=claims.sub,
        principal_kind=claims.kind,
        plan=claims.plan,
        scopes=known(claims.scope.split()),
        session_id=claims.sid,
        handle=claims.handle,
        claimed_scopes=known(claims.claimed_scopes.split()),
    )


def _told(grant: Grant) -> tuple[str, str, str, str, str, tuple[str, ...], str]:
    return (
        grant.principal_id,
        grant.organization_id,
        grant.tenant_id,
        grant.principal_kind,
        grant.plan,
        grant.scopes,
        grant.session_id,
    )


def _claims(subject: _Subject) -> dict[str, Any]:
    principal, organization, tenant, kind, plan, scopes, session = subject.grant
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": subject.audience,
        "sub": principal,
        "org": organization,
        "tenant": tenant,
        "kind": kind,
        "plan": plan,
        "scope": " ".join(scopes),
    }
    if session:
        claims["sid"] = session
    if subject.handle is not None:
        claims["handle"] = subject.handle
        claims["claimed_scopes"] = " ".join(sorted(subject.claimed_scopes))
    return claims


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
