"""What do a question and an answer look like? Two shapes: OpenAI's chat completions and the gateway's own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import msgspec

from demo.prose import count_tokens

DONE = b"data: [DONE]\n\n"

_ENCODER = msgspec.json.Encoder()


class Dialect(Enum):
    """The shapes the Router speaks."""

    CHAT = "chat"
    INFER = "infer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a body asked for."""

    dialect: Dialect
    model: str
    prompt: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True, slots=True)
class Malformed:
    """A body that is not a question: why, and which field is to blame."""

    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens an answer claims."""

    prompt: int
    completion: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What every part of one answer has in common; `usage` is None when none is to be told."""

    dialect: Dialect
    ident: str
    created: int
    model: str
    finish: str
    padding: int
    usage: Usage | None


def read_ask(dialect: Dialect, body: bytes) -> Ask | Malformed:
    """Read a body; only what the Router needs is looked at."""
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Malformed("the body is not JSON")
    if not isinstance(fields, dict):
        return Malformed("the body is not a JSON object")
    if not (isinstance(model := fields.get("model"), str) and model):
        return Malformed("model must be a non-empty string", "model")
    texts = _chat_texts(fields) if dialect is Dialect.CHAT else _infer_texts(fields)
    if isinstance(texts, Malformed):
        return texts
    limit = _limit(fields)
    if isinstance(limit, Malformed):
        return limit
    options = fields.get("stream_options")
    return Ask(
        dialect=dialect,
        model=model,
        prompt=texts[-1],
        prompt_tokens=count_tokens(sum(len(text.encode()) for text in texts[:-1])),
        max_tokens=limit,
        stream=fields.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _chat_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    """Every message's text, and at the end once more the text to echo: the last user's."""
    messages = fields.get("messages")
    if not (isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages)):
        return Malformed("messages must be a non-empty list of objects", "messages")
    texts = [_content_text(message.get("content")) for message in messages]
    spoken = [text for text, message in zip(texts, messages, strict=True) if message.get("role") == "user"]
    return [*texts, (spoken or texts)[-1]]


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return " ".join(text for text in texts if isinstance(text, str))


def _infer_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    text = fields.get("input")
    return [text, text] if isinstance(text, str) else Malformed("input must be a string", "input")


def _limit(fields: dict[str, Any]) -> int | Malformed | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return Malformed(f"{name} must be a positive integer", name)
        return value
    return None


def whole_answer(reply: Reply, pieces: Iterable[str]) -> bytes:
    """Encode the answer as one JSON document."""
    pad = "x" * reply.padding
    text = "".join(piece + pad for piece in pieces)
    if reply.dialect is Dialect.INFER:
        answer: dict[str, Any] = {
            "id": reply.ident,
            "object": "inference",
            "model": reply.model,
            "output": text,
        }
    else:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        answer = _chat_head(reply, "chat.completion") | {"choices": [choice]}
    if reply.usage is not None:
        answer["usage"] = _numbers(reply.dialect, reply.usage)
    return _encode(answer)


def delta_events(reply: Reply, pieces: Iterable[str], last: int | None) -> Iterator[bytes]:
    """Encode one SSE event per piece; event number `last` says why the answer ended there.

    Head and tail are encoded once: per event only bytes are joined.
    """
    pad = b"x" * reply.padding
    if reply.dialect is Dialect.INFER:
        for piece in pieces:
            yield b'data: {"object":"inference.delta","delta":"%b%b"}\n\n' % (_inner(piece), pad)
        return
    opening = _encode(_chat_head(reply, "chat.completion.chunk"))[:-1]
    head = b'data: %b,"choices":[{"index":0,"delta":{' % opening
    # OpenAI sends a null usage in each chunk of a stream that will end with one.
    null_usage = b"" if reply.usage is None else b',"usage":null'
    tail = b'%b"},"finish_reason":%%b}]%b}\n\n' % (pad, null_usage)
    more, final = tail % b"null", tail % _encode(reply.finish)
    content = b'"content":"'
    role = b'"role":"assistant",'
    for number, piece in enumerate(pieces, 1):
        yield head + role + content + _inner(piece) + (final if number == last else more)
        role = b""


def usage_event(reply: Reply, usage: Usage) -> bytes:
    """Encode the event that ends a stream whose caller asked for usage."""
    if reply.dialect is Dialect.INFER:
        event: dict[str, Any] = {"object": "inference.usage"}
    else:
        event = _chat_head(reply, "chat.completion.chunk")
    numbers = _numbers(reply.dialect, usage)
    return b"data: %b\n\n" % _encode(event | {"choices": [], "usage": numbers})


def error_body(status: int, message: str, param: str | None = None) -> bytes:
    """Encode an error as OpenAI does."""
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": None}})


def _chat_head(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.ident, "object": kind, "created": reply.created, "model": reply.model}


def _numbers(dialect: Dialect, usage: Usage) -> dict[str, int]:
    prompt, completion = usage.prompt, usage.completion
    if dialect is Dialect.INFER:
        return {"input_tokens": prompt, "output_tokens": completion}
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _encode(value: object) -> bytes:
    return _ENCODER.encode(value)


@lru_cache(maxsize=4096)
def _inner(piece: str) -> bytes:
    return _ENCODER.encode(piece)[1:-1]
