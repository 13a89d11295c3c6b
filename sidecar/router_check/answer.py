"""What did a Router answer? Its status, headers and body, and in which pieces the body came."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

_OK = range(200, 300)
_NOT_OFFERED = frozenset({404, 405, 501})
_JSON = "application/json"
_EXCERPT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. `headers` have lower-case names; `failure` says why it did not end well, and is empty when it did."""

    status: int
    headers: Mapping[str, str]
    pieces: tuple[bytes, ...] = ()
    failure: str = ""

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self.pieces)

    @property
    def ok(self) -> bool:
        """Whether it is a whole answer to the question."""
        return self.status in _OK and not self.failure

    @property
    def is_offered(self) -> bool:
        """Whether there is anything at the path; no status, 0, says nothing of that."""
        return self.status not in _NOT_OFFERED

    @property
    def is_json(self) -> bool:
        """Whether it is called JSON; parameters like `charset` do not matter."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower() == _JSON

    def described(self) -> str:
        """Say in a few words what it was, for somebody who looks for a fault."""
        if self.failure:
            return f"{self.failure} after status {self.status}" if self.status else self.failure
        begin = self.body[:_EXCERPT].decode("utf-8", "replace")
        return f"status {self.status}, {self.headers.get('content-type', 'no content-type')}: {begin}"


def json_object(data: bytes | str) -> dict[str, Any] | None:
    """The object that this text is in JSON; None when it is none."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def inner(fields: Mapping[str, Any] | None, *names: str) -> Any:
    """What stands under these names, one in the other; None when there is nothing."""
    found: Any = fields
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found
