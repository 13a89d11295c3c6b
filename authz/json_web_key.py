"""Which keys of a JWK Set may verify a token? Only public ones, made for signatures, of a sound size (RFC 7517)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

MAX_KEYS = 100
MAX_DOCUMENT_BYTES = 256 * 1024

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# What a key can verify, by its type and curve (RFC 7518 section 3.1, RFC 8037 section 3.1). Asymmetric only: a public
# key must never be taken for the secret of an HMAC.
_FITTING = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = tuple(algorithm for fitting in _FITTING.values() for algorithm in fitting)
# RFC 7518 section 3.3 asks for 2048 at least; one of more than 8192 takes too long to verify with.
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of an issuer. `name` is made of all the rest: two keys of one name are the same in everything."""

    name: str
    kid: str | None
    algorithms: frozenset[str]
    public: PublicKey = field(repr=False, compare=False)


class _Jwk(msgspec.Struct, kw_only=True):
    """The members of a JWK that matter here. `d` is the private part."""

    kty: str
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None
    n: str | None = None
    e: str | None = None
    x: str | None = None
    y: str | None = None
    d: Any = None


class _JwkSet(msgspec.Struct):
    keys: list[Any]


_DOCUMENT = msgspec.json.Decoder(_JwkSet)


def read(document: bytes) -> tuple[Key, ...]:
    """The usable keys of a JWK Set's text, without doubles; `ValueError` when it is none, or too large."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"is larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        found = _DOCUMENT.decode(document)
    except (ValueError, RecursionError):
        raise ValueError("is no JWK Set") from None
    return _usable(found.keys)


def read_object(document: dict[str, Any]) -> tuple[Key, ...]:
    """As `read`, of a JWK Set that has been parsed."""
    try:
        found = msgspec.convert(document, _JwkSet)
    except msgspec.ValidationError:
        raise ValueError("is no JWK Set") from None
    return _usable(found.keys)


def fitting(keys: Iterable[Key], kid: str | None, algorithm: str) -> Key | None:
    """The one key of this id that fits the algorithm, or, without an id, the only one that does."""
    found = [key for key in keys if algorithm in key.algorithms and kid in {None, key.kid}]
    return found[0] if len(found) == 1 else None


def _usable(documents: list[Any]) -> tuple[Key, ...]:
    if len(documents) > MAX_KEYS:
        raise ValueError(f"holds more than {MAX_KEYS} keys")
    keys = (_key(document) for document in documents)
    return tuple({key.name: key for key in keys if key is not None}.values())


def _key(document: Any) -> Key | None:
    try:
        jwk = msgspec.convert(document, _Jwk)
    except msgspec.ValidationError:
        return None
    algorithms = _algorithms(jwk)
    public = _public(jwk) if algorithms else None
    if public is None:
        return None
    return Key(name=_name(jwk, algorithms), kid=jwk.kid, algorithms=algorithms, public=public)


def _algorithms(jwk: _Jwk) -> frozenset[str]:
    """What the key may verify; nothing when it is for something else, or has been made public with its private part."""
    if jwk.use not in {None, "sig"} or "verify" not in (jwk.key_ops or ["verify"]) or jwk.d is not None:
        return frozenset()
    able = _FITTING.get((jwk.kty, None if jwk.kty == "RSA" else jwk.crv), ())
    return frozenset(able if jwk.alg is None else {jwk.alg} & set(able))


def _public(jwk: _Jwk) -> PublicKey | None:
    members = {name: value for name, value in msgspec.structs.asdict(jwk).items() if value is not None}
    try:
        match jwk.kty:
            case "RSA":
                public: Any = RSAAlgorithm.from_jwk(members)
            case "EC":
                public = ECAlgorithm.from_jwk(members)
            case _:
                public = OKPAlgorithm.from_jwk(members)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        return None
    if isinstance(public, RSAPublicKey):
        return public if _MIN_RSA_BITS <= public.key_size <= _MAX_RSA_BITS else None
    return public if isinstance(public, EllipticCurvePublicKey | Ed25519PublicKey) else None


def _name(jwk: _Jwk, algorithms: frozenset[str]) -> str:
    whole = (jwk.kid, sorted(algorithms), jwk.kty, jwk.crv, jwk.n, jwk.e, jwk.x, jwk.y)
    return sha256(msgspec.json.encode(whole)).hexdigest()
