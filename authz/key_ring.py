"""Which key signs the gateway's identity tokens now, and which public keys does a Router have to know?

A new key is published ahead of its first signature, and the former one stays until long after its last: whoever holds
a copy of the public keys that is minutes old refuses nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PUBLISH_AHEAD = timedelta(minutes=10)
"""From a key's publication to its first signature. More than a worker's delay to hear of it (60 s) and the age to
which a Router may keep the public keys (`JWKS_MAX_AGE_SECONDS`) together."""
PUBLISH_AFTER = timedelta(minutes=10)
"""From a key's last signature to the end of its publication. More than a token's lifetime."""
JWKS_MAX_AGE_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """An Ed25519 key. Times are aware, in UTC; it is published from `created_at` until `retired_at`."""

    id: str
    private: Ed25519PrivateKey = field(repr=False)
    jwk: Mapping[str, str]
    """The public key (RFC 8037), with `kid`, `use` and `alg`."""
    created_at: datetime
    active_from: datetime
    retired_at: datetime | None = None

    @property
    def public(self) -> Ed25519PublicKey:
        """The key that verifies."""
        return self.private.public_key()


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that may be published. Asked with the time, it needs no change when a key takes over."""

    keys: tuple[SigningKey, ...] = ()

    def published(self, now: datetime) -> list[SigningKey]:
        """Those that a Router has to know, newest first."""
        kept = (key for key in self.keys if key.retired_at is None or now < key.retired_at)
        return sorted(kept, key=lambda key: (key.active_from, key.created_at, key.id), reverse=True)

    def signer(self, now: datetime) -> SigningKey | None:
        """The one that signs: the newest that is active; None when there is none."""
        return next((key for key in self.published(now) if key.active_from <= now), None)

    def find(self, key_id: object, now: datetime) -> SigningKey | None:
        """The published key of this id."""
        return next((key for key in self.published(now) if key.id == key_id), None)

    def jwks(self, now: datetime) -> dict[str, Any]:
        """The JSON Web Key Set (RFC 7517) of the public keys."""
        return {"keys": [dict(key.jwk) for key in self.published(now)]}


@dataclass(frozen=True, slots=True, kw_only=True)
class RollOver:
    """When a new key signs, and when at the latest the former ones are published no more."""

    active_from: datetime
    former_retire_at: datetime


def roll_over(now: datetime, *, at_once: bool) -> RollOver:
    """A new key made now takes over when everybody knows it; `at_once`, for a key that was stolen, right now."""
    if at_once:
        return RollOver(active_from=now, former_retire_at=now)
    return RollOver(active_from=now + PUBLISH_AHEAD, former_retire_at=now + PUBLISH_AHEAD + PUBLISH_AFTER)


def generate(*, created_at: datetime, active_from: datetime) -> SigningKey:
    """Make a new key."""
    return from_private_bytes(
        Ed25519PrivateKey.generate().private_bytes_raw(), created_at=created_at, active_from=active_from
    )


def from_private_bytes(
    secret: bytes, *, created_at: datetime, active_from: datetime, retired_at: datetime | None = None
) -> SigningKey:
    """The key of these 32 secret bytes."""
    private = Ed25519PrivateKey.from_private_bytes(secret)
    facts = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(private.public_key().public_bytes_raw())}
    # RFC 7638: the id is a hash of the public key.
    key_id = _base64url(hashlib.sha256(msgspec.json.encode(facts, order="sorted")).digest())
    return SigningKey(
        id=key_id,
        private=private,
        jwk={**facts, "kid": key_id, "use": "sig", "alg": "EdDSA"},
        created_at=created_at,
        active_from=active_from,
        retired_at=retired_at,
    )


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
