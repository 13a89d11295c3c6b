"""What do streams look like in each dialect, and what of them is the client's? Known answers for all that meter."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

Make = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a stream that passes or goes as a whole. `usage` goes where it is removed, `word` always."""

    text: bytes
    counts: bool = True
    usage: bool = False
    word: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A stream, and what must be found in it: `tokens` are input, cached, output and reasoning, as they are said."""

    name: str
    parts: tuple[Part, ...]
    done: bool = True
    failed: bool = False
    decision: str = ""
    cost: str = ""
    tokens: tuple[int | None, int | None, int | None, int | None] = (None, None, None, None)

    @property
    def whole(self) -> bytes:
        return b"".join(part.text for part in self.parts)

    def client(self, *, strips: bool) -> bytes:
        return b"".join(part.text for part in self.parts if not part.word and not (strips and part.usage))

    def events(self, *, strips: bool) -> int:
        return sum(part.counts and not part.word and not (strips and part.usage) for part in self.parts)

    @property
    def words(self) -> dict[str, str]:
        said = {"decision": self.decision, "cost": self.cost}
        return {name: text for name, text in said.items() if text}


def _data(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _named(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def _chunk(text: str, **more: object) -> Part:
    return Part(_data({"choices": [{"index": 0, "delta": {"content": text}}], **more}))


DONE = Part(b"data: [DONE]\n\n")
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
DECISION, COST = '{"model": "small", "why": "cheapest: 1 < 2"}', '{"total_usd": "0.0013"}'
WORDS = (
    Part(f": x-router-decision {DECISION}\n\n".encode(), word=True),
    Part(f": x-router-cost {COST}\n\n".encode(), word=True),
)
# What a model may write to look like more than text.
_TRICKS = "\n\ndata: [DONE]\n\nevent: ping\n: x-router-cost {}\nevent: message_stop ping [DONE] response.failed"


def _of_chat(name: str, head: dict[str, object], delta: dict[str, object]) -> Known:
    token = Part(_data({**head, "choices": [{"index": 0, **delta}], "usage": None}))
    usage = Part(_data({**head, "choices": [], "usage": USAGE}), usage=True)
    return Known(name=name, parts=(token, token, token, usage, DONE), tokens=(9, 4, 3, None))


def _responses(last: str, usage: object) -> tuple[Part, ...]:
    text = {"item_id": "i", "delta": _TRICKS}
    return (
        Part(_named("response.created", response={"status": "in_progress", "usage": None})),
        Part(_named("response.output_text.delta", **text)),
        Part(_named("response.output_text.delta", **text)),
        Part(_named(f"response.{last}", response={"status": last, "usage": usage})),
    )


_RESPONSES_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
}
_MESSAGES = (
    Part(_named("message_start", message={"usage": {"input_tokens": 8, "output_tokens": 1}})),
    Part(b'event: ping\ndata: {"type": "ping"}\n\n', counts=False),
    Part(_named("content_block_delta", delta={"type": "text_delta", "text": _TRICKS})),
    Part(b": keep-alive\n\n", counts=False),
    Part(_named("content_block_delta", delta={"type": "text_delta", "text": "shopping"})),
    Part(_named("message_delta", usage={"output_tokens": 4})),
    Part(_named("message_delta", usage={"output_tokens": 6})),
)
_STOP = Part(_named("message_stop"))

KNOWN = (
    _of_chat("chat", {"object": "chat.completion.chunk"}, {"delta": {"content": "a"}}),
    _of_chat("completions", {"object": "text_completion"}, {"text": "a", "logprobs": None}),
    _of_chat("infer", {"object": "inference.delta"}, {"delta": "a"}),
    Known(name="chat without usage", parts=(_chunk("a"), _chunk(_TRICKS), _chunk("c"), DONE)),
    Known(name="chat that breaks off", parts=(_chunk("a"), _chunk("b")), done=False),
    Known(
        name="chat with words",
        parts=(_chunk("a"), Part(b": hello\n\n", counts=False), _chunk("b"), *WORDS, DONE),
        decision=DECISION,
        cost=COST,
    ),
    Known(
        name="chat with words in events",
        parts=(
            _chunk("a"),
            # Two of them in one comment, around one that is not the Router's word.
            Part(f": x-router-decision {DECISION}\n".encode(), word=True),
            Part(b": x-router-mood fine\n\n", counts=False),
            # And one in an event with data.
            Part(f": x-router-cost {COST}\n".encode(), word=True),
            DONE,
        ),
        decision=DECISION,
        cost=COST,
    ),
    Known(
        name="chat with a word said twice",
        parts=(_chunk("a"), Part(b": x-router-cost {}\n\n", word=True), WORDS[1], DONE),
        cost=COST,
    ),
    Known(name="messages", parts=(*_MESSAGES, _STOP), tokens=(8, None, 6, None)),
    Known(name="messages that break off", parts=_MESSAGES, done=False, tokens=(8, None, 6, None)),
    Known(
        name="responses",
        parts=(*_responses("completed", _RESPONSES_USAGE)[:3], *WORDS, _responses("completed", _RESPONSES_USAGE)[3]),
        decision=DECISION,
        cost=COST,
        tokens=(11, 5, 7, 2),
    ),
    Known(name="incomplete responses", parts=_responses("incomplete", _RESPONSES_USAGE), tokens=(11, 5, 7, 2)),
    Known(name="failed responses", parts=_responses("failed", None), failed=True),
)


def in_crlf(known: Known) -> Known:
    """The same stream with the other ends of lines."""
    parts = tuple(
        Part(part.text.replace(b"\n", b"\r\n"), counts=part.counts, usage=part.usage, word=part.word)
        for part in known.parts
    )
    return Known(
        name=f"{known.name}, CRLF",
        parts=parts,
        done=known.done,
        failed=known.failed,
        decision=known.decision,
        cost=known.cost,
        tokens=known.tokens,
    )


IN_EITHER = tuple(chain(KNOWN, map(in_crlf, KNOWN)))
