"""Why was a request refused, and what is the caller told? The one catalogue of reasons.

A reason's code is the error code in the body, the metric label, the log field and the row in docs/errors.md. Envoy's
own local replies use the same codes (envoy/envoy.yaml); a test proves that they agree.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Any


class ErrorType(StrEnum):
    """The `type` of OpenAI's error object, as its SDKs know it."""

    INVALID_REQUEST = "invalid_request_error"
    AUTHENTICATION = "authentication_error"
    PERMISSION = "permission_error"
    NOT_FOUND = "not_found_error"
    RATE_LIMIT = "rate_limit_error"
    SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class _Row:
    status: int
    type: ErrorType
    message: str
    retryable: bool = False


class Reason(Enum):
    """Every reason for which the gateway itself says no; the member's lower-case name is its code."""

    MISSING_CREDENTIALS = _Row(
        401, ErrorType.AUTHENTICATION, "No API key was given. Send it as 'Authorization: Bearer <key>'."
    )
    INVALID_API_KEY = _Row(401, ErrorType.AUTHENTICATION, "The API key is not valid.")
    CONFLICTING_CREDENTIALS = _Row(401, ErrorType.AUTHENTICATION, "Two different credentials were given.")
    TENANT_SUSPENDED = _Row(403, ErrorType.PERMISSION, "The tenant of this key is suspended.")
    UNKNOWN_PATH = _Row(404, ErrorType.NOT_FOUND, "There is nothing at this path.")
    METHOD_NOT_ALLOWED = _Row(405, ErrorType.INVALID_REQUEST, "This path does not take this method.")
    UNSUPPORTED_MEDIA_TYPE = _Row(
        415, ErrorType.INVALID_REQUEST, "The body must be sent as 'content-type: application/json'."
    )
    UNSUPPORTED_ENCODING = _Row(415, ErrorType.INVALID_REQUEST, "A compressed request body is not accepted.")
    MISSING_BODY = _Row(400, ErrorType.INVALID_REQUEST, "The request has no body.")
    INVALID_JSON = _Row(400, ErrorType.INVALID_REQUEST, "The body is not valid JSON.")
    INVALID_BODY = _Row(400, ErrorType.INVALID_REQUEST, "The body does not have the expected shape.")
    PAYLOAD_TOO_LARGE = _Row(413, ErrorType.INVALID_REQUEST, "The body is larger than this gateway accepts.")
    EXCEEDS_LIMIT = _Row(400, ErrorType.INVALID_REQUEST, "The request alone is larger than one of its limits.")
    RATE_LIMIT_EXCEEDED = _Row(429, ErrorType.RATE_LIMIT, "A limit is exceeded.", retryable=True)
    IDENTITY_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The caller's identity cannot be checked now.", retryable=True)
    LIMITS_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The limits cannot be checked now.", retryable=True)
    # Said by Envoy itself, see local_reply_config in envoy/envoy.yaml.
    GATEWAY_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The gateway cannot admit requests now.", retryable=True)
    UPSTREAM_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The model service cannot be reached.", retryable=True)
    UPSTREAM_TIMEOUT = _Row(504, ErrorType.SERVER, "The model service did not answer in time.", retryable=True)
    REQUEST_TIMEOUT = _Row(408, ErrorType.INVALID_REQUEST, "The request was not received in time.", retryable=True)
    HEADERS_TOO_LARGE = _Row(
        431, ErrorType.INVALID_REQUEST, "The request's headers are larger than this gateway accepts."
    )
    BAD_REQUEST = _Row(400, ErrorType.INVALID_REQUEST, "The request is not valid HTTP.")

    @property
    def code(self) -> str:
        """The reason's name on the wire."""
        return self.name.lower()

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value.status

    @property
    def type(self) -> ErrorType:
        """The kind of error, as OpenAI's SDKs know it."""
        return self.value.type

    @property
    def message(self) -> str:
        """What the caller is told when nothing more particular is known."""
        return self.value.message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.value.retryable


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A no with a reason.

    `param` names the field that is wrong, `details` what a program may want to know (the limit, the allowed methods),
    `retry_after_ms` when it is worth trying again.
    """

    reason: Reason
    message: str | None = None
    param: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    retry_after_ms: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
