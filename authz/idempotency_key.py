"""Which idempotency key did the client name? Reads the header `Idempotency-Key`.

https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07, section 2.1: the value is a String
of structured fields (RFC 9651 section 3.3.3), such as `"8e03978e-40d5-43dd-bc93-6894a57f9324"`. Many clients leave the
quotes out, so that is taken as well.
"""

import re
from collections.abc import Mapping

from authz.refusal import Reason, Refusal

HEADER = "idempotency-key"
MAX_LENGTH = 255
_SHOULD_BE = f"It must be one string of 1 to {MAX_LENGTH} visible ASCII characters, best in double quotes."
# Visible ASCII; in quotes, a quote or a backslash is escaped by a backslash.
_QUOTED = re.compile(r'"((?:[!#-\[\]-~]|\\["\\])+)"')
# Headers that were sent twice come joined by a comma: without quotes, two keys would look like one.
_BARE = re.compile(r"[!#-+\--\[\]-~]+")
_ESCAPED = re.compile(r"\\(.)")


def read(headers: Mapping[str, str]) -> str | Refusal:
    """The key without quotes; empty when the header is not there."""
    value = headers.get(HEADER)
    if value is None:
        return ""
    quoted = _QUOTED.fullmatch(value)
    key = _ESCAPED.sub(r"\1", quoted[1]) if quoted else value
    if len(key) > MAX_LENGTH or not (quoted or _BARE.fullmatch(value)):
        message = f"{Reason.INVALID_IDEMPOTENCY_KEY.message} {_SHOULD_BE}"
        return Refusal(reason=Reason.INVALID_IDEMPOTENCY_KEY, message=message, param=HEADER)
    return key
