"""How does OpenAI's Responses API say an answer? One document, or a stream of numbered, named events around one."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from demo.reply import Reply, Usage, encode, inner
from demo.script import Terminal

_PART = {"type": "output_text", "annotations": [], "logprobs": []}
# What the schema wants in every document; the stand-in has nothing to say to it.
_FIXED: dict[str, Any] = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
}
_OPENING_EVENTS = 4
_DELTA = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":%d,'
    b'"item_id":"%b","output_index":0,"content_index":0,"delta":"%b%b","logprobs":[]}\n\n'
)


def numbers(usage: Usage) -> dict[str, Any]:
    """Usage, its parts always told."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached or 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": usage.prompt + usage.completion,
    }


def whole(reply: Reply, text: str) -> dict[str, Any]:
    """Say the answer as one document, usage aside."""
    status = _status(reply)
    return _document(reply, status) | {"output": [_item(reply, status, text)]} | _ending(reply, status)


def delta_events(reply: Reply, pieces: Iterable[str]) -> Iterator[bytes]:
    """Encode one frame per piece; the first brings with it what opens the stream."""
    opening, pad, item = _opening(reply), b"x" * reply.padding, _item_id(reply).encode()
    for number, piece in enumerate(pieces, _OPENING_EVENTS):
        yield opening + _DELTA % (number, item, inner(piece), pad)
        opening = b""


def closing(reply: Reply, text: str, events: int) -> bytes:
    """Encode what ends a stream whose `events` pieces said the text."""
    status, numbered = _status(reply), count(_OPENING_EVENTS + events)
    place = {"item_id": _item_id(reply), "output_index": 0, "content_index": 0}
    told = {} if reply.usage is None else {"usage": numbers(reply.usage)}
    return (
        (b"" if events else _opening(reply))
        + _event("response.output_text.done", next(numbered), **place, text=text, logprobs=[])
        + _event("response.content_part.done", next(numbered), **place, part=_PART | {"text": text})
        + _event("response.output_item.done", next(numbered), output_index=0, item=_item(reply, status, text))
        + reply.words
        + _event(f"response.{status}", next(numbered), response=whole(reply, text) | told)
    )


def _opening(reply: Reply) -> bytes:
    running = _document(reply, "in_progress")
    place = {"item_id": _item_id(reply), "output_index": 0, "content_index": 0}
    item = _item(reply, "in_progress", "") | {"content": []}
    return (
        _event("response.created", 0, response=running)
        + _event("response.in_progress", 1, response=running)
        + _event("response.output_item.added", 2, output_index=0, item=item)
        + _event("response.content_part.added", 3, **place, part=_PART | {"text": ""})
    )


def _status(reply: Reply) -> str:
    if reply.terminal is not None:
        return reply.terminal.value
    return "completed" if reply.finish == "stop" else "incomplete"


def _ending(reply: Reply, status: str) -> dict[str, Any]:
    if status == Terminal.FAILED:
        return {"error": {"code": "server_error", "message": "the request asked for a failure"}}
    if status == Terminal.INCOMPLETE:
        reason = "max_output_tokens" if reply.finish == "length" else "content_filter"
        return {"incomplete_details": {"reason": reason}}
    return {}


def _document(reply: Reply, status: str) -> dict[str, Any]:
    return {
        "id": reply.ident,
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": reply.model,
        "output": [],
        "usage": None,
    } | _FIXED


def _item(reply: Reply, status: str, text: str) -> dict[str, Any]:
    # An item knows no failure: it stays incomplete.
    known = Terminal.INCOMPLETE if status == Terminal.FAILED else status
    content = [_PART | {"text": text}]
    return {"id": _item_id(reply), "type": "message", "status": known, "role": "assistant", "content": content}


def _item_id(reply: Reply) -> str:
    return f"msg_{reply.ident.removeprefix('resp_')}"


def _event(name: str, number: int, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode({"type": name, "sequence_number": number} | fields))
