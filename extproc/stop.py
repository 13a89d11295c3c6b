"""What does a client get when the gateway itself stops its request? An error, or a last event of its stream."""

import msgspec

from authz import error_body
from authz.refusal import Reason, Refusal
from authz.routes import Dialect
from extproc.lifecycle import Cause

_REASONS = {
    Cause.CLIENT_CANCEL: Reason.REQUEST_CANCELLED,
    Cause.ADMIN_CANCEL: Reason.REQUEST_CANCELLED,
    Cause.REVOKED: Reason.CREDENTIAL_REVOKED,
    Cause.OUTPUT_LIMIT: Reason.OUTPUT_LIMIT_REACHED,
}
# OpenAI's SDK retries 409 and 5xx by itself; what was stopped must not come again.
_NOT_AGAIN = (("x-should-retry", "false"),)


def refusal(cause: Cause) -> Refusal:
    """The error of a request that is stopped for this cause, one of `lifecycle.STOPPING`."""
    return Refusal(reason=_REASONS[cause], headers=_NOT_AGAIN)


def last_events(cause: Cause, *, dialect: Dialect, request_id: str, now: float) -> bytes:
    """How an event stream of this dialect ends, so that the dialect's SDK raises the error. `now` is epoch seconds.

    OpenAI's SDK raises what has an `error` in it, Anthropic's what is named so; the Responses API has a flat error
    event, which its SDK would take for one of the answer's.
    """
    body = error_body.render(refusal(cause), dialect=dialect, request_id=request_id, now=now).strip()
    match dialect:
        case Dialect.ANTHROPIC_MESSAGES:
            return b"event: error\ndata: %b\n\n" % body
        case Dialect.OPENAI_RESPONSES:
            error = msgspec.json.decode(body)["error"]
            flat = {"type": "error", "code": error["code"], "message": error["message"], "param": None, "error": error}
            return b"event: error\ndata: %b\n\n" % msgspec.json.encode(flat)
        case _:
            return b"data: %b\n\ndata: [DONE]\n\n" % body
