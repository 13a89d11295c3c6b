"""How does OpenAI's older completions API say an answer? As bare text, one choice or several."""

from collections.abc import Iterable, Iterator
from typing import Any

from demo.reply import Reply, encode, inner


def head(reply: Reply) -> dict[str, Any]:
    """What every document and every event of it begins with."""
    return {"id": reply.ident, "object": "text_completion", "created": reply.created, "model": reply.model}


def whole(reply: Reply, text: str) -> dict[str, Any]:
    """Say the answer as one document: the same text in each choice."""
    said = {"text": text, "logprobs": None, "finish_reason": reply.finish}
    return head(reply) | {"choices": [{"index": at} | said for at in range(reply.choices)]}


def delta_events(reply: Reply, pieces: Iterable[str], last: int | None) -> Iterator[bytes]:
    """Encode one event per piece and choice; piece number `last` says why the choices ended there."""
    opening, pad = encode(head(reply))[:-1], b"x" * reply.padding
    # OpenAI sends a null usage in each chunk of a stream that will end with one.
    null_usage = b"" if reply.usage is None else b',"usage":null'
    for number, piece in enumerate(pieces, 1):
        finish = encode(reply.finish if number == last else None)
        for at in range(reply.choices):
            choice = b'{"text":"%b%b","index":%d,"logprobs":null,"finish_reason":%b}' % (inner(piece), pad, at, finish)
            yield b'data: %b,"choices":[%b]%b}\n\n' % (opening, choice, null_usage)
