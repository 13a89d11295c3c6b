"""How is each dialect asked, and how do its streams end? One row for each path of the contract."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sidecar.router_check.event_stream import DONE, Event

# Enough tokens to see a stream grow, few enough to cost nothing.
TOKENS = 24
_QUESTION = "Count from one to thirty, in words."
_MESSAGES = [{"role": "user", "content": _QUESTION}]


class Telling(Enum):
    """Where a stream says its usage."""

    NEVER = "it has no streams"
    WHEN_ASKED = "in the last event before [DONE], with empty choices"
    CUMULATIVE = "in message_start and every message_delta"
    AT_THE_END = "in the last event, in response.usage"


_TERMINAL_NAMES = {
    Telling.CUMULATIVE: frozenset({"message_stop"}),
    Telling.AT_THE_END: frozenset({"response.completed", "response.incomplete", "response.failed"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """One dialect: its path, the field of the question, one that is wrong, and the field of the maximum."""

    name: str
    path: str
    field: str
    question: Any
    wrong: Any
    most: str | None = "max_tokens"
    telling: Telling = Telling.WHEN_ASKED

    def body(self, model: str, *, tokens: int = TOKENS, stream: bool = False) -> dict[str, Any]:
        """A request as the gateway would send it."""
        fields = {"model": model, self.field: self.question}
        if self.most is not None:
            fields[self.most] = tokens
        if stream:
            fields["stream"] = True
            if self.telling is Telling.WHEN_ASKED:
                fields["stream_options"] = {"include_usage": True}
        return fields

    def wrong_body(self, model: str) -> dict[str, Any]:
        """A request with a field of the wrong type."""
        return self.body(model) | {self.field: self.wrong}

    def is_terminal(self, event: Event) -> bool:
        """Whether the stream has said all with this event; the gateway knows it by its name."""
        names = _TERMINAL_NAMES.get(self.telling)
        return event.data == DONE if names is None else event.name in names

    def is_content(self, event: Event) -> bool:
        """Whether the event brings a piece of the answer."""
        if self.telling is not Telling.WHEN_ASKED:
            return event.type.endswith("delta") and event.type != "message_delta"
        fields = event.fields or {}
        # A dialect of one's own may have no choices at all.
        return bool(fields) and bool(fields.get("choices", not fields.get("usage")))


DIALECTS = (
    Spoken(name="chat", path="/v1/chat/completions", field="messages", question=_MESSAGES, wrong="x"),
    Spoken(name="completions", path="/v1/completions", field="prompt", question=_QUESTION, wrong={"a": 1}),
    Spoken(
        name="responses",
        path="/v1/responses",
        field="input",
        question=_QUESTION,
        wrong=5,
        most="max_output_tokens",
        telling=Telling.AT_THE_END,
    ),
    Spoken(
        name="messages",
        path="/v1/messages",
        field="messages",
        question=_MESSAGES,
        wrong="x",
        telling=Telling.CUMULATIVE,
    ),
    Spoken(
        name="embeddings",
        path="/v1/embeddings",
        field="input",
        question=_QUESTION,
        wrong={"a": 1},
        most=None,
        telling=Telling.NEVER,
    ),
    Spoken(name="infer", path="/v1/infer", field="input", question=_QUESTION, wrong=None),
)
