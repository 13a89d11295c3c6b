"""Where may a webhook go? To an https URL without a login in it, whose host is no address of a private network.

Which addresses a name leads to is checked again whenever something is sent: it can change.
"""

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from store.field_error import FieldError
from store.public_address import is_public

FIELD = "url"
LONGEST = 2048
_LONGEST_HOST = 253  # RFC 1035 section 2.3.4


def checked(url: str, *, allow_private: bool) -> str:
    """Return the URL; raises `FieldError` when it is none of these. `allow_private` lets http and any host pass."""
    if len(url) > LONGEST:
        raise FieldError(FIELD, f"is longer than {LONGEST} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise FieldError(FIELD, "holds a sign that must be written otherwise in a URL, such as %20 for a space")
    parts = _split(url)
    if parts.scheme not in ({"https", "http"} if allow_private else {"https"}):
        raise FieldError(FIELD, "must begin with https://")
    # `@` alone is an empty login. urlsplit leaves out neither.
    if "@" in parts.netloc:
        raise FieldError(FIELD, "must hold no login; who sends is told by the signature")
    if "#" in url:
        raise FieldError(FIELD, "must have no fragment (#): it would not be sent")
    if not allow_private:
        _require_public(parts.hostname or "")
    return url


def host_of(url: str) -> str:
    """The host and port of a URL that was checked: what may be shown of it where its path may be a secret."""
    return urlsplit(url).netloc


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise FieldError(FIELD, "is not a URL") from None
    if not parts.hostname or len(parts.hostname) > _LONGEST_HOST or port == 0:
        raise FieldError(FIELD, "must name a host, like https://example.com/hook")
    return parts


def _require_public(host: str) -> None:
    try:
        ip_address(host)
    except ValueError:
        # Resolvers read more as an address than Python does: 127.1, 0x7f.1, 2130706433. None of these is a name.
        last = host.rstrip(".").rpartition(".")[2]
        if last.isdigit() or last.startswith("0x"):
            raise FieldError(FIELD, "must have a name, or an address in its usual form") from None
        if "." not in host.rstrip(".") or last == "localhost":
            raise FieldError(FIELD, "must name a host of the public internet") from None
        return
    if not is_public(host):
        raise FieldError(FIELD, "must name a host of the public internet")
