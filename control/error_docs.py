"""What goes wrong on a path, and how is it said? The errors of the catalogue, as OpenAPI describes them."""

from collections.abc import Iterator
from typing import Any

from authz import error_body
from authz.refusal import ErrorType, Reason
from authz.routes import Dialect, Limited, Route

_ANTHROPICS = "anthropic_"
_UNKNOWN = {"/sessions/": Reason.UNKNOWN_SESSION, "/webhooks/": Reason.UNKNOWN_WEBHOOK}
_OF_INFERENCE = (
    Reason.RATE_LIMIT_EXCEEDED,
    Reason.PAYLOAD_TOO_LARGE,
    Reason.UNSUPPORTED_MEDIA_TYPE,
    Reason.UPSTREAM_TIMEOUT,
    Reason.IDEMPOTENCY_KEY_IN_USE,
    Reason.IDEMPOTENCY_KEY_REUSED,
)
_EXAMPLE_ID = "3f0d8a52-6a0c-4e57-9d2c-8a4f1f1f0a11"
_RETRY_AFTER = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["message", "type", "param", "code", "details", "request_id", "timestamp"],
    "properties": {
        "message": {"type": "string"},
        "type": {"type": "string", "enum": [each.value for each in ErrorType]},
        "param": {"type": ["string", "null"], "description": "The field, parameter or header that is wrong."},
        "code": {"type": "string", "enum": [reason.code for reason in Reason]},
        "details": {"type": "object", "description": "What a program may want to know, such as the limit."},
        "request_id": {"type": "string"},
        "timestamp": {"type": "string", "format": "date-time"},
    },
}
_TYPE = {"type": "string", "enum": sorted({error_body.anthropic_type(reason) for reason in Reason})}
SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "title": "Error",
        "description": "The gateway's no; OpenAI's SDKs read it too.",
        "required": ["error"],
        "properties": {"error": _ERROR},
    },
    "AnthropicError": {
        "type": "object",
        "title": "AnthropicError",
        "description": "The same in the shape of Anthropic's API.",
        "required": ["type", "error", "request_id"],
        "properties": {
            "type": {"type": "string", "const": "error"},
            "error": _ERROR | {"properties": _ERROR["properties"] | {"type": _TYPE}},
            "request_id": {"type": "string"},
        },
    },
}
"""The bodies of errors, under the names by which they are referred to."""


def errors_of(route: Route, *, asked: bool) -> dict[str, Any]:
    """The error responses of a route by status; `asked` says whether it reads a body or parameters."""
    prefix = _ANTHROPICS if route.dialect is Dialect.ANTHROPIC_MESSAGES else ""
    reasons = sorted(_reasons_of(route, asked=asked), key=lambda reason: reason.status)
    return {str(reason.status): {"$ref": f"#/components/responses/{prefix}{reason.code}"} for reason in reasons}


def _reasons_of(route: Route, *, asked: bool) -> Iterator[Reason]:
    """One reason of each status: the usual one. The catalogue has them all."""
    yield Reason.INTERNAL_ERROR
    yield Reason.GATEWAY_UNAVAILABLE
    if asked:
        yield Reason.INVALID_BODY if route.method == "POST" else Reason.INVALID_PARAMETER
    if not route.public:
        yield Reason.MISSING_CREDENTIALS
        yield Reason.INSUFFICIENT_SCOPE if route.scope else Reason.TENANT_SUSPENDED
    if "{" in route.path:
        yield next((reason for part, reason in _UNKNOWN.items() if part in route.path), Reason.UNKNOWN_REQUEST)
    if route.limited is Limited.ALL:
        yield from _OF_INFERENCE
    elif not route.public:
        yield Reason.TOO_MANY_FAILURES


def _response(reason: Reason, *, anthropic: bool) -> dict[str, Any]:
    said: dict[str, Any] = {
        "message": reason.message,
        "type": error_body.anthropic_type(reason) if anthropic else reason.type.value,
        "param": None,
        "code": reason.code,
        "details": {},
        "request_id": _EXAMPLE_ID,
        "timestamp": "2026-01-01T12:00:00Z",
    }
    example: dict[str, Any] = {"error": said}
    if anthropic:
        example = {"type": "error", **example, "request_id": _EXAMPLE_ID}
    name = "AnthropicError" if anthropic else "Error"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}, "example": example}}
    response: dict[str, Any] = {"description": reason.message, "content": content}
    return response | ({"headers": _RETRY_AFTER} if reason.retryable else {})


RESPONSES: dict[str, Any] = {
    **{reason.code: _response(reason, anthropic=False) for reason in Reason},
    **{_ANTHROPICS + reason.code: _response(reason, anthropic=True) for reason in Reason},
}
"""The answer of each reason of the catalogue, under the name by which it is referred to."""
