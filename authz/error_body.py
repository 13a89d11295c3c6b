"""What does an error look like on the wire? One JSON body that OpenAI's SDKs and ours can read."""

import math
from datetime import UTC, datetime

import msgspec

from authz.refusal import Reason, Refusal

CONTENT_TYPE = "application/json"
_MS_PER_SECOND = 1000


def render(refusal: Refusal, *, request_id: str, now: float) -> bytes:
    """The body of a refusal. `now` is in seconds since the epoch."""
    reason = refusal.reason
    error = {
        "message": refusal.message or reason.message,
        "type": reason.type.value,
        "param": refusal.param,
        "code": reason.code,
        "details": refusal.details,
        "request_id": request_id,
        "timestamp": timestamp(now),
    }
    return msgspec.json.encode({"error": error}) + b"\n"


def headers(refusal: Refusal) -> list[tuple[str, str]]:
    """The headers that go with the body."""
    found = [("content-type", CONTENT_TYPE), *refusal.headers]
    if refusal.reason.status == Reason.MISSING_CREDENTIALS.status:
        found.append(("www-authenticate", 'Bearer realm="inference-gateway"'))
    if refusal.retry_after_ms is not None:
        # RFC 9110 section 10.2.3: whole seconds. Rounded up, for a client that comes too early is refused again.
        seconds = max(1, math.ceil(refusal.retry_after_ms / _MS_PER_SECOND))
        found += [("retry-after", str(seconds)), ("retry-after-ms", str(refusal.retry_after_ms))]
    return found


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds, as Envoy's %START_TIME% prints it in our local replies."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
