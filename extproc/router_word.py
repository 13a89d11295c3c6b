"""Is what the Router says of a request fit to be kept? Its decision and its cost stand on the request's row."""

import msgspec

_MAX_BYTES = 8192
# PostgreSQL has no NUL in a text, and so none in a jsonb: the row could not be written.
_NUL = "\x00"


def json_object(text: str) -> str:
    """The JSON object that stands there, as a `jsonb` can take it; empty when it is none, or longer than 8 KiB."""
    if not text or len(text.encode(errors="replace")) > _MAX_BYTES:
        return ""
    try:
        found = msgspec.json.decode(text)
        kept = msgspec.json.encode(found).decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return ""
    return kept if isinstance(found, dict) and not _has_nul(kept) else ""


def _has_nul(text: str) -> bool:
    return "\\u0000" in text.replace("\\\\", "")
