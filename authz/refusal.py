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
    INSUFFICIENT_QUOTA = "insufficient_quota"
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
        401, ErrorType.AUTHENTICATION, "No credential was given. Send an API key as 'Authorization: Bearer <key>'."
    )
    INVALID_API_KEY = _Row(401, ErrorType.AUTHENTICATION, "The API key is not valid.")
    INVALID_TOKEN = _Row(401, ErrorType.AUTHENTICATION, "The token is not valid.")
    INVALID_SESSION = _Row(401, ErrorType.AUTHENTICATION, "The session does not exist or has ended.")
    UNKNOWN_CERTIFICATE = _Row(401, ErrorType.AUTHENTICATION, "The client certificate belongs to no known workload.")
    CERTIFICATE_REQUIRED = _Row(
        401, ErrorType.AUTHENTICATION, "A client certificate of the tenant must accompany the credential."
    )
    CONFLICTING_CREDENTIALS = _Row(401, ErrorType.AUTHENTICATION, "Two credentials were given that do not agree.")
    TOO_MANY_FAILURES = _Row(
        429, ErrorType.RATE_LIMIT, "Too many wrong credentials came from this address.", retryable=True
    )
    ORGANIZATION_SUSPENDED = _Row(403, ErrorType.PERMISSION, "The organization of this credential is suspended.")
    TENANT_SUSPENDED = _Row(403, ErrorType.PERMISSION, "The tenant of this credential is suspended.")
    PRINCIPAL_SUSPENDED = _Row(403, ErrorType.PERMISSION, "The owner of this credential is suspended.")
    UNKNOWN_TENANT = _Row(403, ErrorType.PERMISSION, "The token is valid, but its tenant or plan is not known here.")
    INSUFFICIENT_SCOPE = _Row(403, ErrorType.PERMISSION, "The credential lacks a scope that this path needs.")
    NETWORK_NOT_ALLOWED = _Row(403, ErrorType.PERMISSION, "The credential may not be used from this address.")
    MODEL_NOT_ALLOWED = _Row(403, ErrorType.PERMISSION, "The credential may not use this model.")
    INVALID_CSRF_TOKEN = _Row(
        403, ErrorType.PERMISSION, "A request with a session's cookie needs its token in 'x-csrf-token'."
    )
    SESSION_NOT_ALLOWED = _Row(403, ErrorType.PERMISSION, "This credential cannot be exchanged for a session.")
    UNKNOWN_SESSION = _Row(404, ErrorType.NOT_FOUND, "There is no such session of this principal.")
    TOO_MANY_SESSIONS = _Row(429, ErrorType.RATE_LIMIT, "The principal has as many sessions as it may.", retryable=True)
    UNKNOWN_PATH = _Row(404, ErrorType.NOT_FOUND, "There is nothing at this path.")
    METHOD_NOT_ALLOWED = _Row(405, ErrorType.INVALID_REQUEST, "This path does not take this method.")
    UNSUPPORTED_MEDIA_TYPE = _Row(
        415, ErrorType.INVALID_REQUEST, "The body must be sent as 'content-type: application/json'."
    )
    UNSUPPORTED_ENCODING = _Row(415, ErrorType.INVALID_REQUEST, "A compressed request body is not accepted.")
    MISSING_BODY = _Row(400, ErrorType.INVALID_REQUEST, "The request has no body.")
    INVALID_PARAMETER = _Row(400, ErrorType.INVALID_REQUEST, "A parameter of the query is not valid.")
    INVALID_JSON = _Row(400, ErrorType.INVALID_REQUEST, "The body is not valid JSON.")
    INVALID_BODY = _Row(400, ErrorType.INVALID_REQUEST, "The body does not have the expected shape.")
    PAYLOAD_TOO_LARGE = _Row(413, ErrorType.INVALID_REQUEST, "The body is larger than this gateway accepts.")
    EXCEEDS_LIMIT = _Row(400, ErrorType.INVALID_REQUEST, "The request alone is larger than one of its limits.")
    RATE_LIMIT_EXCEEDED = _Row(429, ErrorType.RATE_LIMIT, "A limit is exceeded.", retryable=True)
    INSUFFICIENT_QUOTA = _Row(429, ErrorType.INSUFFICIENT_QUOTA, "A budget is used up.")
    INVALID_IDEMPOTENCY_KEY = _Row(400, ErrorType.INVALID_REQUEST, "The header 'idempotency-key' is not valid.")
    IDEMPOTENCY_KEY_REUSED = _Row(
        422, ErrorType.INVALID_REQUEST, "The idempotency key was used before, with another request."
    )
    IDEMPOTENCY_KEY_IN_USE = _Row(409, ErrorType.INVALID_REQUEST, "The first request with this idempotency key runs.")
    IDEMPOTENT_RESULT_ELSEWHERE = _Row(
        409, ErrorType.INVALID_REQUEST, "The request with this idempotency key is done; its answer was not recorded."
    )
    IDEMPOTENCY_UNAVAILABLE = _Row(
        503, ErrorType.SERVER, "Whether the request was made before cannot be checked now.", retryable=True
    )
    UNKNOWN_REQUEST = _Row(404, ErrorType.NOT_FOUND, "There is no such request of this tenant.")
    TOO_MANY_WATCHES = _Row(429, ErrorType.RATE_LIMIT, "Too many requests are being watched.", retryable=True)
    TOO_MANY_EXPORTS = _Row(429, ErrorType.RATE_LIMIT, "Too many files of requests are being written.", retryable=True)
    REQUEST_ENDED = _Row(409, ErrorType.INVALID_REQUEST, "The request has ended already.")
    REQUEST_CANCELLED = _Row(499, ErrorType.INVALID_REQUEST, "The request was cancelled.")
    CREDENTIAL_REVOKED = _Row(401, ErrorType.AUTHENTICATION, "The credential was revoked while the request ran.")
    OUTPUT_LIMIT_REACHED = _Row(400, ErrorType.INVALID_REQUEST, "The answer is longer than the plan allows.")
    UNKNOWN_WEBHOOK = _Row(404, ErrorType.NOT_FOUND, "There is no such webhook of this tenant.")
    OVERLOADED = _Row(503, ErrorType.SERVER, "The model service is overloaded; this plan has to wait.", retryable=True)
    IDENTITY_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The caller's identity cannot be checked now.", retryable=True)
    LIMITS_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The limits cannot be checked now.", retryable=True)
    INTERNAL_ERROR = _Row(500, ErrorType.SERVER, "The gateway failed to answer; the failure is in its log.")
    # Said by Envoy itself, see local_reply_config in envoy/envoy.yaml.
    GATEWAY_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The gateway cannot admit requests now.", retryable=True)
    UPSTREAM_UNAVAILABLE = _Row(503, ErrorType.SERVER, "The model service cannot be reached.", retryable=True)
    UPSTREAM_TIMEOUT = _Row(504, ErrorType.SERVER, "The model service did not answer in time.", retryable=True)
    DEADLINE_EXCEEDED = _Row(504, ErrorType.SERVER, "The request took longer than its plan allows.")
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
