"""What was asked? Reads a body of any of the dialects that the Router speaks."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from demo.prose import count_tokens


class Dialect(Enum):
    """The shapes the Router speaks."""

    CHAT = "chat"
    COMPLETIONS = "completions"  # OpenAI's older ones
    RESPONSES = "responses"
    INFER = "infer"
    MESSAGES = "messages"  # Anthropic's
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a body asked for; `inputs` are the texts to embed, `choices` how many answers there are to be."""

    dialect: Dialect
    model: str
    prompt: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    inputs: tuple[str, ...] = ()
    choices: int = 1


@dataclass(frozen=True, slots=True)
class Malformed:
    """A request that is no question: why, and which field or header is to blame."""

    message: str
    param: str | None = None


def read_ask(dialect: Dialect, body: bytes) -> Ask | Malformed:
    """Read a body; only what the Router needs is looked at."""
    fields = _fields(body)
    if isinstance(fields, Malformed):
        return fields
    return _embedding(fields) if dialect is Dialect.EMBEDDINGS else _question(dialect, fields)


def _fields(body: bytes) -> dict[str, Any] | Malformed:
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Malformed("the body is not JSON")
    if not isinstance(fields, dict):
        return Malformed("the body is not a JSON object")
    if not (isinstance(model := fields.get("model"), str) and model):
        return Malformed("model must be a non-empty string", "model")
    return fields


def _question(dialect: Dialect, fields: dict[str, Any]) -> Ask | Malformed:
    texts = _READERS[dialect](fields)
    if isinstance(texts, Malformed):
        return texts
    limit = _limit(dialect, fields)
    if isinstance(limit, Malformed):
        return limit
    each = _number("n", fields) if dialect is Dialect.COMPLETIONS else None
    if isinstance(each, Malformed):
        return each
    return Ask(
        dialect=dialect,
        model=fields["model"],
        prompt=texts[-1],
        prompt_tokens=_tokens(texts[:-1]),
        max_tokens=limit,
        stream=fields.get("stream") is True,
        include_usage=dialect in _ALWAYS_TELL or _wants_usage(fields),
        choices=(each or 1) * (len(texts) - 1 if dialect is Dialect.COMPLETIONS else 1),
    )


def _listed_texts(name: str, fields: dict[str, Any]) -> list[str] | Malformed:
    """One text or several; a list of numbers is one text, already cut into tokens."""
    given = fields.get(name)
    one = isinstance(given, str) or (isinstance(given, list) and all(isinstance(part, int) for part in given))
    parts = [given] if one else given
    if not given or not isinstance(parts, list):
        return Malformed(f"{name} must be a non-empty string or list", name)
    return [part if isinstance(part, str) else msgspec.json.encode(part).decode() for part in parts]


def _embedding(fields: dict[str, Any]) -> Ask | Malformed:
    inputs = _listed_texts("input", fields)
    if isinstance(inputs, Malformed):
        return inputs
    return Ask(
        dialect=Dialect.EMBEDDINGS,
        model=fields["model"],
        prompt="",
        prompt_tokens=_tokens(inputs),
        max_tokens=None,
        stream=False,
        include_usage=True,
        inputs=tuple(inputs),
    )


def _spoken_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    """Every message's text, and at the end once more the text to echo: the last user's."""
    messages = fields.get("messages")
    if not (isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages)):
        return Malformed("messages must be a non-empty list of objects", "messages")
    texts = [_content_text(message.get("content")) for message in messages]
    spoken = [text for text, message in zip(texts, messages, strict=True) if message.get("role") == "user"]
    # Anthropic's system prompt stands outside of the messages.
    return [_content_text(fields.get("system")), *texts, (spoken or texts)[-1]]


def _content_text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return " ".join(text for text in texts if isinstance(text, str))


def _infer_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    text = fields.get("input")
    return [text, text] if isinstance(text, str) else Malformed("input must be a string", "input")


def _completion_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    texts = _listed_texts("prompt", fields)
    return texts if isinstance(texts, Malformed) else [*texts, texts[-1]]


def _response_texts(fields: dict[str, Any]) -> list[str] | Malformed:
    given = fields.get("input")
    told = [_content_text(fields.get("instructions"))]
    if isinstance(given, str) and given:
        return [*told, given, given]
    if not (isinstance(given, list) and given and all(isinstance(item, dict) for item in given)):
        return Malformed("input must be a non-empty string or list of objects", "input")
    texts = [_content_text(item.get("content")) for item in given]
    return [*told, *texts, texts[-1]]


# Every text of a body, and at the end once more the one to echo.
_READERS: dict[Dialect, Callable[[dict[str, Any]], list[str] | Malformed]] = {
    Dialect.CHAT: _spoken_texts,
    Dialect.COMPLETIONS: _completion_texts,
    Dialect.RESPONSES: _response_texts,
    Dialect.INFER: _infer_texts,
    Dialect.MESSAGES: _spoken_texts,
}
_ALWAYS_TELL = (Dialect.MESSAGES, Dialect.RESPONSES)
_LIMITS = {Dialect.CHAT: ("max_completion_tokens", "max_tokens"), Dialect.RESPONSES: ("max_output_tokens",)}


def _limit(dialect: Dialect, fields: dict[str, Any]) -> int | Malformed | None:
    for name in _LIMITS.get(dialect, ("max_tokens",)):
        found = _number(name, fields)
        if found is not None:
            return found
    return Malformed("max_tokens is missing", "max_tokens") if dialect is Dialect.MESSAGES else None


def _number(name: str, fields: dict[str, Any]) -> int | Malformed | None:
    value = fields.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        return Malformed(f"{name} must be a positive integer", name)
    return value


def _wants_usage(fields: dict[str, Any]) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _tokens(texts: tuple[str, ...] | list[str]) -> int:
    return count_tokens(sum(len(text.encode()) for text in texts))
