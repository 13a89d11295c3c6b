"""What is a session's token made of, how does a browser carry it, and what of it is stored?

    igs_07Kq2mWZp4Ts_9f...43 characters...xQ_0a1B2c
    ^   ^ ^          ^                       ^
    |   shard        secret, 256 bits        checksum of all before it
    prefix  10 random characters

It is made like an API key (authz/api_key.py). The shard says where Redis keeps the session: in that of its principal,
so that both are found in one step. Redis has only a keyed hash of the token.
"""

import base64
import hmac
import re
from dataclasses import dataclass, field
from typing import Protocol

from authz.api_key import CHECKSUM_LENGTH, SECRET_LENGTH, checksum, random_text
from authz.derived_key import derived_key
from authz.principal import Handle
from authz.scope import Scope

PREFIX = "igs"
COOKIE_NAME = "__Host-igw_session"
MAX_SESSIONS_PER_PRINCIPAL = 100
_MAX_SHARD = 99
_RANDOM_LENGTH = 10
_FORMAT = re.compile(
    rf"(?P<body>{PREFIX}_(?P<id>(?P<shard>[0-9]{{2}})[0-9A-Za-z]{{{_RANDOM_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"_(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
# RFC 6265bis section 4.1.3.2: browsers take a `__Host-` cookie only with Secure, Path=/ and no Domain.
_COOKIE_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"


class SessionOutage(Exception):
    """Sessions cannot be asked for now; whether the session exists is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionToken:
    """A token as its holder knows it. `text` is the secret and never shows in a `repr`; `id` is what people see."""

    id: str
    shard: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session, and whose it is. Times are milliseconds since the epoch, by the clock of the store."""

    id: str
    handle: Handle
    """Its principal, as the directory is asked for it."""
    claimed_scopes: frozenset[Scope]
    """What the JWT claimed that the session was exchanged for."""
    principal_id: str
    tenant_id: str
    created_ms: int
    expires_ms: int
    """Its absolute end."""
    idle_ms: int
    """For how long it outlives its last use."""
    last_used_ms: int
    cookie: bool
    """Whether a browser carries it; such a token counts nowhere but in the cookie."""
    name: str = ""
    source: str = ""
    """The address that it was made from."""

    @property
    def ends_ms(self) -> int:
        """When it ends if it is not used again."""
        return min(self.last_used_ms + self.idle_ms, self.expires_ms)


class Sessions(Protocol):
    """Keeps sessions. Every method raises `SessionOutage` when it cannot be done, or may not have been."""

    async def create(self, token: SessionToken, session: Session) -> bool:
        """Keep the session; False when its principal has `MAX_SESSIONS_PER_PRINCIPAL` that live.

        The token's shard must be its principal's. It lives by the store's clock: it is created at once, and lasts for
        `expires_ms - created_ms`.
        """

    async def find(self, token: SessionToken) -> Session | None:
        """The session of this token, which is used hereby; None when there is none or it has ended."""

    async def list_of(self, principal_id: str) -> list[Session]:
        """The principal's sessions that live, the newest first. None of them is used hereby."""

    async def revoke(self, principal_id: str, session_id: str) -> bool:
        """End one session; False when the principal has no such session."""

    async def revoke_all(self, principal_id: str) -> int:
        """End all that exist at this moment; how many there were."""


def generate(shard: int) -> SessionToken:
    """Make a new token for a session that is kept in this shard (`quota.redis.shard_of` its principal's id)."""
    body = f"{PREFIX}_{shard:02}{random_text(_RANDOM_LENGTH)}_{random_text(SECRET_LENGTH)}"
    token = parse(f"{body}_{checksum(body)}") if 0 <= shard <= _MAX_SHARD else None
    if token is None:
        raise ValueError(f"a shard is a number of at most two digits, not {shard}")
    return token


def parse(text: str) -> SessionToken | None:
    """Read a token; None when the text is not one, a mistyped one included."""
    match = _FORMAT.fullmatch(text)
    if match is None or checksum(match["body"]) != match["checksum"]:
        return None
    return SessionToken(id=f"ses_{match['id']}", shard=int(match["shard"]), text=text)


def keyed_hash(token: SessionToken, pepper: bytes) -> bytes:
    """What a session is stored under; its key is none that API keys are hashed with."""
    return hmac.digest(derived_key(pepper, "session"), token.text.encode(), "sha256")


def csrf_token(token: SessionToken, pepper: bytes) -> str:
    """What a browser must send beside the cookie, in a header that a foreign page cannot set: made of the session."""
    digest = hmac.digest(derived_key(pepper, "csrf"), token.text.encode(), "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def csrf_matches(expected: str, shown: str) -> bool:
    """Whether the right CSRF token was shown; takes as long wherever a wrong one begins to differ."""
    return hmac.compare_digest(expected.encode(), shown.encode(errors="replace"))


def from_cookie(header: str) -> str | None:
    """The session's token in a Cookie header; None when it is not there, is empty, or two different ones are."""
    if COOKIE_NAME not in header:
        return None
    pairs = (pair.partition("=") for pair in header.split(";"))
    values = {value.strip(" \t") for name, _, value in pairs if name.strip(" \t") == COOKIE_NAME}
    return (values.pop() or None) if len(values) == 1 else None


def set_cookie(token: SessionToken, max_age_seconds: int) -> str:
    """The Set-Cookie header that gives a browser the token."""
    return f"{COOKIE_NAME}={token.text}; Max-Age={max_age_seconds}; {_COOKIE_ATTRIBUTES}"


def clear_cookie() -> str:
    """The Set-Cookie header that has a browser forget the token."""
    return f"{COOKIE_NAME}=; Max-Age=0; {_COOKIE_ATTRIBUTES}"
