"""What is an API key made of, how is it told from a typo, and what of it is stored?

    igw_live_7Kq2mWZp4TsB_9f...43 characters...xQ_0a1B2c
    ^   ^    ^            ^                       ^
    |   tag  public id    secret, 256 bits        checksum of all before it

The prefix and the checksum let a secret scanner, and us, tell a key from other text without a lookup. Only the
public id and a keyed hash of the whole text are stored: a stolen database holds nothing that opens a door, and
without the pepper not even guesses can be tested.
"""

import hmac
import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

PREFIX = "igw"
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_LENGTH = 12
_SECRET_LENGTH = 43  # 62**43 > 2**256
_CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_FORMAT = re.compile(
    rf"(?P<body>{PREFIX}_(?P<tag>[a-z]{{1,12}})_(?P<id>[0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}})"
    rf"_(?P<checksum>[0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as its holder knows it. `text` is the secret and never shows in a `repr`."""

    tag: str
    id: str
    text: str = field(repr=False)


def generate(tag: str = "live") -> ApiKey:
    """Make a new key; `tag` is lower-case letters naming the environment."""
    body = f"{PREFIX}_{tag}_{_random(_ID_LENGTH)}_{_random(_SECRET_LENGTH)}"
    key = parse(f"{body}_{_checksum(body)}")
    if key is None:
        raise ValueError(f"the tag must be 1 to 12 lower-case letters, not {tag!r}")
    return key


def parse(text: str) -> ApiKey | None:
    """Read a key; None when the text is not one, a mistyped one included."""
    match = _FORMAT.fullmatch(text)
    if match is None or _checksum(match["body"]) != match["checksum"]:
        return None
    return ApiKey(tag=match["tag"], id=match["id"], text=text)


def keyed_hash(text: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of the whole key. A fast hash is enough: 256 random bits cannot be guessed from it."""
    return hmac.digest(pepper, text.encode(), "sha256")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
