"""What does an answer look like in each dialect? Chat, embeddings and the gateway's own here.

The others have modules of their own: `completion`, `responses`, and Anthropic's `message`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

from demo import completion, message, responses
from demo.ask import Dialect
from demo.reply import Reply, Usage, encode, inner

DONE = b"data: [DONE]\n\n"
_DIMENSIONS = 8
_WHOLE = {Dialect.MESSAGES: message.whole, Dialect.RESPONSES: responses.whole, Dialect.COMPLETIONS: completion.whole}
_NUMBERS = {Dialect.MESSAGES: message.numbers, Dialect.RESPONSES: responses.numbers}


def whole_answer(reply: Reply, pieces: Iterable[str]) -> bytes:
    """Encode the answer as one JSON document: the pieces joined, or a vector for each."""
    answer = _embeddings(reply, pieces) if reply.dialect is Dialect.EMBEDDINGS else _said(reply, pieces)
    if reply.usage is not None:
        answer["usage"] = _numbers(reply.dialect, reply.usage)
    return encode(answer)


def _said(reply: Reply, pieces: Iterable[str]) -> dict[str, Any]:
    pad = "x" * reply.padding
    text = "".join(piece + pad for piece in pieces)
    if (say := _WHOLE.get(reply.dialect)) is not None:
        return say(reply, text)
    if reply.dialect is Dialect.INFER:
        return {"id": reply.ident, "object": "inference", "model": reply.model, "output": text}
    said = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reply.finish}
    return _chat_head(reply, "chat.completion") | {"choices": [choice]}


def _embeddings(reply: Reply, inputs: Iterable[str]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": at, "embedding": _vector(text)} for at, text in enumerate(inputs)]
    return {"object": "list", "data": data, "model": reply.model}


def _vector(text: str) -> list[float]:
    """Numbers of -1 to 1, the same for the same text; always as a list, whatever `encoding_format` asks for."""
    return [crc32(text.encode(), at) / 2**31 - 1 for at in range(_DIMENSIONS)]


def delta_events(reply: Reply, pieces: Iterable[str], last: int | None) -> Iterator[bytes]:
    """Encode one SSE event per piece and choice; piece number `last` says why the answer ended there.

    Head and tail are encoded once: per event only bytes are joined.
    """
    if reply.dialect is Dialect.MESSAGES:
        return message.delta_events(reply, pieces)
    if reply.dialect is Dialect.RESPONSES:
        return responses.delta_events(reply, pieces)
    if reply.dialect is Dialect.COMPLETIONS:
        return completion.delta_events(reply, pieces, last)
    return _infer_deltas(reply, pieces) if reply.dialect is Dialect.INFER else _chat_deltas(reply, pieces, last)


def _infer_deltas(reply: Reply, pieces: Iterable[str]) -> Iterator[bytes]:
    pad = b"x" * reply.padding
    for piece in pieces:
        yield b'data: {"object":"inference.delta","delta":"%b%b"}\n\n' % (inner(piece), pad)


def _chat_deltas(reply: Reply, pieces: Iterable[str], last: int | None) -> Iterator[bytes]:
    opening = encode(_chat_head(reply, "chat.completion.chunk"))[:-1]
    head = b'data: %b,"choices":[{"index":0,"delta":{' % opening
    # OpenAI sends a null usage in each chunk of a stream that will end with one.
    null_usage = b"" if reply.usage is None else b',"usage":null'
    tail = b'%b"},"finish_reason":%%b}]%b}\n\n' % (b"x" * reply.padding, null_usage)
    more, final = tail % b"null", tail % encode(reply.finish)
    content = b'"content":"'
    role = b'"role":"assistant",'
    for number, piece in enumerate(pieces, 1):
        yield head + role + content + inner(piece) + (final if number == last else more)
        role = b""


def closing_events(reply: Reply, said: Sequence[str]) -> list[bytes]:
    """Encode what ends a stream that said these pieces, with its usage when that is to be told."""
    if reply.dialect is Dialect.MESSAGES:
        return [message.closing(reply, empty=not said)]
    if reply.dialect is Dialect.RESPONSES:
        pad = "x" * reply.padding
        return [responses.closing(reply, "".join(piece + pad for piece in said), len(said))]
    done = reply.words + DONE
    return [done] if reply.usage is None else [_usage_event(reply, reply.usage), done]


def ping(dialect: Dialect) -> bytes:
    """Encode what keeps a connection awake and says nothing."""
    return message.PING if dialect is Dialect.MESSAGES else b": ping\n\n"


def _usage_event(reply: Reply, usage: Usage) -> bytes:
    if reply.dialect is Dialect.INFER:
        event: dict[str, Any] = {"object": "inference.usage"}
    elif reply.dialect is Dialect.COMPLETIONS:
        event = completion.head(reply)
    else:
        event = _chat_head(reply, "chat.completion.chunk")
    numbers = _numbers(reply.dialect, usage)
    return b"data: %b\n\n" % encode(event | {"choices": [], "usage": numbers})


def error_body(status: int, text: str, param: str | None = None) -> bytes:
    """Encode an error as OpenAI does."""
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return encode({"error": {"message": text, "type": kind, "param": param, "code": None}})


def _chat_head(reply: Reply, kind: str) -> dict[str, Any]:
    return {"id": reply.ident, "object": kind, "created": reply.created, "model": reply.model}


def _numbers(dialect: Dialect, usage: Usage) -> dict[str, Any]:
    if (count := _NUMBERS.get(dialect)) is not None:
        return count(usage)
    if dialect is Dialect.EMBEDDINGS:
        return {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
    total = usage.prompt + usage.completion
    if dialect is Dialect.INFER:
        said = {"input_tokens": usage.prompt, "output_tokens": usage.completion}
        return said | _details("input_tokens", "output_tokens", usage)
    said = {"prompt_tokens": usage.prompt, "completion_tokens": usage.completion, "total_tokens": total}
    return said | _details("prompt_tokens", "completion_tokens", usage)


def _details(of_input: str, of_output: str, usage: Usage) -> dict[str, Any]:
    found = {}
    if usage.cached is not None:
        found[f"{of_input}_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning is not None:
        found[f"{of_output}_details"] = {"reasoning_tokens": usage.reasoning}
    return found
