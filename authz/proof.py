"""What does a right credential prove? Whose it is, and what it says of its owner beyond the directory."""

import hmac
from dataclasses import dataclass, field
from datetime import datetime

from authz.principal import Handle, Principal, PrincipalKind
from authz.scope import Scope

_NO_HASH = bytes(32)
_SECRETS = 2  # the key's, and the one from before a rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A credential that was found right.

    `kind` is how it was proved: for a session, not the principal's own. `csrf_token` is what must accompany a change
    made with a cookie; empty when nothing must.
    """

    principal: Principal
    kind: PrincipalKind
    handle: Handle
    claimed_scopes: frozenset[Scope] = frozenset()
    session_id: str = ""
    csrf_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """All that was proved by one request: the credential that acts, and those that merely accompany it."""

    acting: Proof
    certificate: Proof | None = None
    cookie: Proof | None = None

    @property
    def accompanying(self) -> tuple[Proof, ...]:
        """The others; they give nothing, and must not contradict."""
        if self.certificate is None and self.cookie is None:
            return ()
        return tuple(proof for proof in (self.certificate, self.cookie) if proof is not None and proof != self.acting)


def opens(principal: Principal | None, presented: bytes, *, now: datetime) -> bool:
    """Whether the keyed hash of a presented key is one of the principal's that still counts.

    An unknown, a wrong, an expired and a revoked key take as many comparisons as a right one.
    """
    secrets = () if principal is None else principal.secrets
    found = False
    for at in range(_SECRETS):
        secret = secrets[at] if at < len(secrets) else None
        right = hmac.compare_digest(presented, _NO_HASH if secret is None else secret.hash)
        if secret is not None and (secret.expires_at is None or now < secret.expires_at):
            found |= right
    return found and principal is not None and lives(principal, now=now)


def lives(principal: Principal, *, now: datetime) -> bool:
    """Whether the principal has neither been revoked nor come to its end."""
    return principal.revoked_at is None and (principal.expires_at is None or now < principal.expires_at)
