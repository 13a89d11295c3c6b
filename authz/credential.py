"""Which credentials does a request carry? Read from headers, cookie and certificate; nothing is looked up here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from authz import api_key, certificate, session
from authz.refusal import Reason, Refusal

_BEARER = "bearer"
# Anthropic's SDKs send x-api-key, Azure's api-key.
_KEY_HEADERS = ("x-api-key", "api-key")
_FINGERPRINT_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What was shown: a token in a header, a session's cookie, a client certificate. Any of them may be missing."""

    token: str | None = field(default=None, repr=False)
    cookie: str | None = field(default=None, repr=False)
    certificate_names: tuple[str, ...] = ()
    certificate_shown: bool = False

    @property
    def fingerprint(self) -> str:
        """What an audit row says was shown; never a secret."""
        shown = self.token or self.cookie
        if shown is None:
            return f"certificate:{self.certificate_names[0] if self.certificate_names else 'without a name'}"
        return fingerprint(shown)


def read(headers: Mapping[str, str], pem: str, *, dns_names: bool, now: datetime) -> Credentials | Refusal:
    """Read what is there; a Refusal when there is nothing, or two different tokens stand in headers."""
    given = {headers[name].strip() for name in _KEY_HEADERS if name in headers}
    authorization = headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != _BEARER:
            return Refusal(reason=Reason.INVALID_API_KEY, message="The authorization scheme must be Bearer.")
        given.add(token.strip())
    if len(given) > 1:
        return Refusal(reason=Reason.CONFLICTING_CREDENTIALS)
    cookie = session.from_cookie(headers["cookie"]) if "cookie" in headers else None
    if not given and cookie is None and not pem:
        return Refusal(reason=Reason.MISSING_CREDENTIALS)
    return Credentials(
        token=given.pop() if given else None,
        cookie=cookie,
        certificate_names=certificate.names(pem, dns=dns_names, now=now) if pem else (),
        certificate_shown=bool(pem),
    )


def fingerprint(text: str) -> str:
    """Name a token for the audit: by its public id where it has one, else by the beginning of its SHA-256."""
    key = api_key.parse(text)
    if key is not None:
        return f"key:{key.id}"
    shown = session.parse(text)
    if shown is not None:
        return f"session:{shown.id}"
    return f"token:{sha256(text.encode(errors='replace')).hexdigest()[:_FINGERPRINT_DIGITS]}"
