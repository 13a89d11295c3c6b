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
SECRET_LENGTH = 43  # 62**43 > 2**256
CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_FORMAT = re.compile(
    rf"(?P<body>{PREFIX}_(?P<tag>[a-z]{{1,12}})_(?P<id>[0-9A-Za-z]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"_(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as its holder knows it. `text` is the secret and never shows in a `repr`."""

    tag: str
    id: str
    text: str = field(repr=False)


def generate(tag: str = "live", *, public_id: str | None = None) -> ApiKey:
    """Make a new key; `tag` is lower-case letters naming the environment.

    With a `public_id` only the secret is new: this is how a key is rotated. `ValueError` when one of them is wrong.
    """
    body = f"{PREFIX}_{tag}_{public_id or random_text(_ID_LENGTH)}_{random_text(SECRET_LENGTH)}"
    key = parse(f"{body}_{checksum(body)}")
    if key is None:
        of_id = "" if public_id is None else f", and the public id {_ID_LENGTH} letters and digits, not {public_id!r}"
        raise ValueError(f"the tag must be 1 to 12 lower-case letters, not {tag!r}{of_id}")
    return key


def parse(text: str) -> ApiKey | None:
    """Read a key; None when the text is not one, a mistyped one included."""
    match = _FORMAT.fullmatch(text)
    if match is None or checksum(match["body"]) != match["checksum"]:
        return None
    return ApiKey(tag=match["tag"], id=match["id"], text=text)


def keyed_hash(text: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of the whole key. A fast hash is enough: 256 random bits cannot be guessed from it."""
    return hmac.digest(pepper, text.encode(), "sha256")


def random_text(length: int) -> str:
    """Random digits and letters, good enough for a secret."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def checksum(body: str) -> str:
    """The last part of a key or session token: CRC-32 of all before it, in base 62."""
    number = zlib.crc32(body.encode())
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
