"""Is this JWT right, and what does it say? PyJWT does the cryptography; the key and the algorithm are chosen here.

The order is that of RFC 8725: the algorithm must be one of the issuer's and fit the key, the key is one of the issuer's
own set, and no claim is believed before the signature is. What a token's header says of keys (`jku`, `jwk`, `x5u`,
`x5c`) is never read.
"""

import asyncio
import binascii
import re
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol, Self

import jwt
import msgspec
from jwt.types import Options

from authz.issuer import Flaw, Issuer, VerifiedToken, read_claims
from authz.json_web_key import Key
from authz.key_set import Fetch, KeySet, KeySetStatus, KeysUnavailable, StaticKeySet
from authz.refusal import Reason, Refusal

MAX_LENGTH = 16 * 1024
_CAPACITY = 10_000
_RETRY_AFTER_MS = 1000
_TEND_SECONDS = 1.0
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the last that a datetime can hold
# The signature may be empty, as that of the algorithm `none` is: such a text is a JWT, and a wrong one.
_SHAPE = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)

# Times are checked here, against the clock that was handed in.
_OPTIONS: Options = {"require": ["exp"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
_FLAWS: tuple[tuple[type[jwt.PyJWTError], Flaw], ...] = (
    (jwt.InvalidSignatureError, Flaw.SIGNATURE),
    (jwt.InvalidAudienceError, Flaw.AUDIENCE),
    (jwt.InvalidAlgorithmError, Flaw.ALGORITHM),
    (jwt.DecodeError, Flaw.MALFORMED),
)


class Keys(Protocol):
    """The keys of one issuer."""

    def holds(self, key: Key) -> bool:
        """Whether the issuer still has the key, as far as is known."""

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The one key that fits; raises `KeysUnavailable` when that cannot be known now."""

    def tend(self) -> None:
        """Do in the background what is due, and tell how things stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedToken:
    """A token that was not right: what was wrong, and who it says has issued it; empty when that is nobody known."""

    issuer: str
    flaw: Flaw


Observe = Callable[[KeySetStatus | RefusedToken], None]


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Any = msgspec.UNSET


class _Issued(msgspec.Struct):
    iss: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    token: VerifiedToken
    key: Key
    keys: Keys
    until: float


_HEADER = msgspec.json.Decoder(_Header)
_ISSUED = msgspec.json.Decoder(_Issued)


def _ignore(_: KeySetStatus | RefusedToken) -> None:
    pass


class TokenVerifier:
    """Verifies tokens, and remembers those that were right. `now` is in seconds since the epoch."""

    def __init__(
        self,
        issuers: Iterable[Issuer],
        key_sets: Mapping[str, Keys],
        *,
        now: Callable[[], float],
        observe: Observe = _ignore,
    ) -> None:
        """`key_sets` has those of all issuers, by `Issuer.issuer`."""
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._key_sets = key_sets
        self._now = now
        self._observe = observe
        self._held: OrderedDict[bytes, _Held] = OrderedDict()

    @classmethod
    def of(
        cls,
        issuers: Iterable[Issuer],
        fetch: Fetch,
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        observe: Observe = _ignore,
    ) -> Self:
        """A verifier with the key sets that the issuers ask for."""
        issuers = tuple(issuers)
        key_sets: dict[str, Keys] = {
            issuer.issuer: StaticKeySet(issuer)
            if issuer.jwks_url is None
            else KeySet(issuer, fetch, now=monotonic, observe=observe)
            for issuer in issuers
        }
        return cls(issuers, key_sets, now=now, observe=observe)

    def looks_like(self, text: str) -> bool:
        """Whether the text is shaped like a JWT."""
        return len(text) <= MAX_LENGTH and _SHAPE.fullmatch(text) is not None

    def held(self, text: str) -> VerifiedToken | None:
        """What a token said that has been verified before and still is right; needs no await."""
        if len(text) > MAX_LENGTH:
            return None
        digest = _digest(text)
        entry = self._held.get(digest)
        if entry is None:
            return None
        if self._now() >= entry.until or not entry.keys.holds(entry.key):
            del self._held[digest]
            return None
        self._held.move_to_end(digest)
        return entry.token

    async def verify(self, text: str) -> VerifiedToken | Refusal:
        """What the token says; INVALID_TOKEN, UNKNOWN_TENANT, or IDENTITY_UNAVAILABLE when keys cannot be had."""
        held = self.held(text)
        if held is not None:
            return held
        issuer, header = self._unverified(text)
        try:
            outcome = Flaw.MALFORMED if header is None else await self._verified(text, issuer, header)
        except KeysUnavailable:
            return Refusal(reason=Reason.IDENTITY_UNAVAILABLE, retry_after_ms=_RETRY_AFTER_MS)
        if isinstance(outcome, VerifiedToken):
            return outcome
        self._observe(RefusedToken(issuer="" if issuer is None else issuer.issuer, flaw=outcome))
        unknown = outcome is Flaw.UNKNOWN_TENANT
        return Refusal(reason=Reason.UNKNOWN_TENANT if unknown else Reason.INVALID_TOKEN)

    async def run(self) -> None:
        """Keep the key sets fresh whether or not anybody calls, until cancelled."""
        while True:
            for keys in self._key_sets.values():
                keys.tend()
            await asyncio.sleep(_TEND_SECONDS)

    def _unverified(self, text: str) -> tuple[Issuer | None, _Header | None]:
        """Who says to have issued the token, and its header: only to choose the key by."""
        if not self.looks_like(text):
            return None, None
        header, payload, _ = text.split(".")
        try:
            read = _HEADER.decode(_bytes(header))
            return self._issuers.get(_ISSUED.decode(_bytes(payload)).iss), read
        except (ValueError, RecursionError):
            return None, None

    async def _verified(self, text: str, issuer: Issuer | None, header: _Header) -> VerifiedToken | Flaw:
        if issuer is None:
            return Flaw.UNKNOWN_ISSUER
        if header.alg not in issuer.algorithms:
            return Flaw.ALGORITHM
        if header.crit is not msgspec.UNSET:  # RFC 7515 section 4.1.11: no extension is understood here
            return Flaw.MALFORMED
        keys = self._key_sets[issuer.issuer]
        key = await keys.find(header.kid, header.alg)
        if key is None:
            return Flaw.UNKNOWN_KEY
        claims = _signed_claims(text, key, header.alg, issuer)
        if isinstance(claims, Flaw):
            return claims
        token = _untimely(claims, issuer.leeway_seconds, self._now()) or read_claims(issuer, claims)
        if isinstance(token, VerifiedToken):
            self._keep(text, _Held(token=token, key=key, keys=keys, until=claims["exp"] + issuer.leeway_seconds))
        return token

    def _keep(self, text: str, entry: _Held) -> None:
        digest = _digest(text)
        self._held[digest] = entry
        self._held.move_to_end(digest)
        while len(self._held) > _CAPACITY:
            self._held.popitem(last=False)


def _digest(text: str) -> bytes:
    # "surrogatepass": any text at all may be asked for.
    return sha256(text.encode(errors="surrogatepass")).digest()


def _bytes(segment: str) -> bytes:
    try:
        return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error as error:
        raise ValueError("is not base64url") from error


def _signed_claims(text: str, key: Key, algorithm: str, issuer: Issuer) -> dict[str, Any] | Flaw:
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key.public,
            algorithms=[algorithm],
            audience=issuer.audiences,
            issuer=issuer.issuer,
            options=_OPTIONS,
        )
    except jwt.PyJWTError as error:
        return next((flaw for kind, flaw in _FLAWS if isinstance(error, kind)), Flaw.CLAIMS)
    except (ValueError, RecursionError):
        return Flaw.MALFORMED
    return claims


def _untimely(claims: Mapping[str, Any], leeway: int, now: float) -> Flaw | None:
    """Whether the token's time has passed or not yet come. `exp` ends it, `nbf` and `iat` begin it."""
    times = [claims[name] for name in ("exp", "nbf", "iat") if name in claims]
    if not all(_is_time(time) for time in times):
        return Flaw.CLAIMS
    if claims["exp"] <= now - leeway:
        return Flaw.EXPIRED
    if max(claims.get("nbf", 0), claims.get("iat", 0)) > now + leeway:
        return Flaw.NOT_YET_VALID
    return None


def _is_time(value: Any) -> bool:
    """Whether the value is a NumericDate (RFC 7519 section 2) of a year up to 9999; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND
