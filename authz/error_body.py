"""What does an error look like on the wire? One JSON body for OpenAI's SDKs and ours, another for Anthropic's."""

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from authz.refusal import ErrorType, Reason, Refusal
from authz.routes import Dialect

CONTENT_TYPE = "application/json"
REALM = "inference-gateway"
_MS_PER_SECOND = 1000
# Anthropic has a type for a request's kind alone; what else there is to say says the code.
_ANTHROPIC_TYPES = {ErrorType.SERVER: "api_error", ErrorType.INSUFFICIENT_QUOTA: ErrorType.RATE_LIMIT.value}
_UNAUTHORIZED, _PAYLOAD_TOO_LARGE, _GATEWAY_TIMEOUT = 401, 413, 504


def render(refusal: Refusal, *, dialect: Dialect = Dialect.PLAIN, request_id: str, now: float) -> bytes:
    """The body of a refusal, in the shape of the caller's dialect. `now` is in seconds since the epoch."""
    reason = refusal.reason
    anthropic = dialect is Dialect.ANTHROPIC_MESSAGES
    error = {
        "message": refusal.message or reason.message,
        "type": anthropic_type(reason) if anthropic else reason.type.value,
        "param": refusal.param,
        "code": reason.code,
        "details": refusal.details,
        "request_id": request_id,
        "timestamp": timestamp(now),
    }
    body: dict[str, Any] = {"error": error}
    if anthropic:
        body = {"type": "error", "error": error, "request_id": request_id}
    return msgspec.json.encode(body) + b"\n"


def anthropic_type(reason: Reason) -> str:
    """The `type` of Anthropic's error object, as its SDKs know it."""
    if reason.status == _PAYLOAD_TOO_LARGE:
        return "request_too_large"
    if reason.status == _GATEWAY_TIMEOUT:
        return "timeout_error"
    return _ANTHROPIC_TYPES.get(reason.type, reason.type.value)


def headers(refusal: Refusal) -> list[tuple[str, str]]:
    """The headers that go with the body."""
    found = [("content-type", CONTENT_TYPE), *refusal.headers]
    challenge = _challenge(refusal)
    if challenge is not None:
        found.append(("www-authenticate", challenge))
    if refusal.retry_after_ms is not None:
        # RFC 9110 section 10.2.3: whole seconds. Rounded up, for a client that comes too early is refused again.
        seconds = max(1, math.ceil(refusal.retry_after_ms / _MS_PER_SECOND))
        found += [("retry-after", str(seconds)), ("retry-after-ms", str(refusal.retry_after_ms))]
    return found


def request_id_headers(dialect: Dialect, request_id: str) -> list[tuple[str, str]]:
    """The headers of an answer that name its request beside `x-request-id`: Anthropic's SDKs look for another one."""
    return [("request-id", request_id)] if dialect is Dialect.ANTHROPIC_MESSAGES else []


def _challenge(refusal: Refusal) -> str | None:
    """RFC 6750 section 3: no error code for a request without a credential, a scope for one that lacks it."""
    match refusal.reason:
        case Reason.MISSING_CREDENTIALS:
            return f'Bearer realm="{REALM}"'
        case Reason.INSUFFICIENT_SCOPE:
            return f'Bearer realm="{REALM}", error="insufficient_scope", scope="{refusal.details["scope"]}"'
        case reason if reason.status == _UNAUTHORIZED:
            return f'Bearer realm="{REALM}", error="invalid_token"'
        case _:
            return None


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with milliseconds, as Envoy's %START_TIME% prints it in our local replies."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
