"""How does Anthropic's Messages API say an answer? One document, a stream of named events, or an error."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from demo.reply import Reply, Usage, encode, inner

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%b%b"}}\n\n'
)


def numbers(usage: Usage) -> dict[str, int]:
    """Usage: the input tokens are those that no cache knew, the others stand beside them."""
    if usage.cached is None and usage.cache_written is None:
        return {"input_tokens": usage.prompt, "output_tokens": usage.completion}
    read, written = usage.cached or 0, usage.cache_written or 0
    return {
        "input_tokens": max(0, usage.prompt - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.completion,
    }


def whole(reply: Reply, text: str) -> dict[str, Any]:
    """Say the answer as one document."""
    return _head(reply) | {"content": [{"type": "text", "text": text}], "stop_reason": _STOP_REASONS[reply.finish]}


def delta_events(reply: Reply, pieces: Iterable[str]) -> Iterator[bytes]:
    """Encode one frame per piece; the first brings with it what opens the stream."""
    opening, pad = _opening(reply), b"x" * reply.padding
    for piece in pieces:
        yield opening + _DELTA % (inner(piece), pad)
        opening = b""


def closing(reply: Reply, *, empty: bool) -> bytes:
    """Encode what ends a stream. The output tokens are those of the whole message, not of the last event."""
    told = {} if reply.usage is None else {"usage": _closing_numbers(reply.usage)}
    delta = {"stop_reason": _STOP_REASONS[reply.finish], "stop_sequence": None}
    return (
        (_opening(reply) if empty else b"")
        + _event("content_block_stop", index=0)
        + _event("message_delta", delta=delta, **told)
        + reply.words
        + _event("message_stop")
    )


def _closing_numbers(usage: Usage) -> dict[str, int]:
    found = numbers(usage)
    # With a cache the last event says the input once more, as Anthropic's does.
    return found if len(found) > len(("input", "output")) else {"output_tokens": usage.completion}


def error_body(status: int, message: str, request_id: str | None) -> bytes:
    """Encode an error."""
    kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return encode({"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id})


def _opening(reply: Reply) -> bytes:
    # The first event knows the input; its output token is the first of those that the last event counts.
    usage = reply.usage
    told = {} if usage is None else {"usage": numbers(replace(usage, completion=min(1, usage.completion)))}
    return (
        _event("message_start", message=_head(reply) | told)
        + _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        + PING
    )


def _head(reply: Reply) -> dict[str, Any]:
    return {
        "id": reply.ident,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _event(name: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name} | fields))


PING = _event("ping")
